"""Detectors that are plain functions: a real one with random weights, and one that knows what is in its pictures."""

import asyncio
import hashlib
import io
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_core.config.model import Category
from maskrcnn_core.data.segmentation import rasterise
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord
from pipelines.serving.detector_feed import Detected
from pipelines.serving.detector_service import ServedModel
from tests.small_detector import FINDING, finding_detector

Detect = Callable[[bytes], ImageRecord]


class FunctionDetector:
    """`DetectorClient` of a function from a file's bytes to what is in it."""

    def __init__(self, detect: Detect, model: ServedModel) -> None:
        self.function, self.model = detect, model

    async def detect(self, content: bytes) -> Detected:
        begin = time.perf_counter()
        record = await asyncio.to_thread(self.function, content)
        spent = 1000 * (time.perf_counter() - begin)
        return Detected(record, self.model.fingerprint, 0.1 * spent, 1.5, 0.9 * spent, 1)

    async def describe(self) -> ServedModel:
        return self.model


def served_model(categories: Sequence[Category], fingerprint: str) -> ServedModel:
    return ServedModel("small", fingerprint, tuple((one.id, one.name) for one in categories), None, True)


def small_detector() -> FunctionDetector:
    predictor = Predictor(finding_detector(), FINDING, PredictorSettings(device="cpu"))
    lock = threading.Lock()

    def detect(content: bytes) -> ImageRecord:
        with lock:
            return predictor.predict([content])[0]

    return FunctionDetector(detect, served_model(predictor.categories, predictor.fingerprint))


def annotated_record(
    annotations: Sequence[Mapping[str, Any]], categories: Sequence[Category], height: int, width: int
) -> ImageRecord:
    """Annotations as if a detector had found them, with scores that fall from .99 on."""
    names = {category.id: category.name for category in categories}
    scores = np.linspace(0.99, 0.12, max(len(annotations), 2))
    detections = []
    for entry, score in zip(annotations, scores.tolist(), strict=False):
        points = None
        if entry.get("num_keypoints"):
            triples = np.array(entry["keypoints"], float).reshape(-1, 3)
            triples[:, 2] = np.where(triples[:, 2] == 2, 0.9, np.where(triples[:, 2] == 1, 0.03, 0.0))
            points = tuple(triples.ravel().tolist())
        mask = rasterise(entry["segmentation"], height, width)
        counts = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode("ascii")
        number = entry["category_id"]
        detections.append(DetectionRecord(number, names[number], score, tuple(entry["bbox"]), counts, points))
    return ImageRecord("ok", None, width, height, detections)


def knowing_detector(pictures: Mapping[str, ImageRecord], categories: Sequence[Category]) -> FunctionDetector:
    """Knows pictures by the digest of their bytes; any other has nothing in it."""

    def detect(content: bytes) -> ImageRecord:
        known = pictures.get(hashlib.sha256(content).hexdigest())
        if known is not None:
            return known
        width, height = Image.open(io.BytesIO(content)).size
        return ImageRecord("ok", None, width, height)

    return FunctionDetector(detect, served_model(categories, "0123456789abcdef" * 2))
