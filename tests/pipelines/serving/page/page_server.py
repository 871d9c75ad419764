"""A server for the page: the whole application without Ray, over detectors that are plain functions.

`small` is a real predictor with random weights; `drawn` knows the generated pictures, and answers with their
annotations as records.
"""

import asyncio
import hashlib
import io
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from pycocotools import mask as coco_mask
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from maskrcnn_core.config.model import Category
from maskrcnn_core.data.generated.pictures import CATEGORIES, generate_picture
from maskrcnn_core.data.segmentation import rasterise
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord
from pipelines.serving.config import ServeConfig
from pipelines.serving.detector_feed import Detected
from pipelines.serving.detector_service import ServedModel
from pipelines.serving.guarded import guarded
from pipelines.serving.page.page import EXAMPLE_SEED, EXAMPLE_SIZE
from tests.small_detector import FINDING, finding_detector

Detect = Callable[[bytes], ImageRecord]
MAX_BYTES = 2_000_000


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


def example_contents(routes: Sequence[BaseRoute]) -> dict[int, bytes]:
    """The page's example pictures, by number, as its routes give them."""
    with running(Starlette(routes=routes)) as address:
        facts = json.loads(urllib.request.urlopen(f"{address}page/facts.json", timeout=30).read())
        places = [example["address"] for example in facts["examples"]]
        return {
            int(place.rpartition("/")[2].removesuffix(".jpg")): urllib.request.urlopen(address + place).read()
            for place in places
        }


def example_records(contents: Mapping[int, bytes]) -> dict[str, ImageRecord]:
    """Records of the page's example pictures, by the digest of their files."""
    records = {}
    for number, content in contents.items():
        picture = generate_picture(number, seed=EXAMPLE_SEED, image_size=EXAMPLE_SIZE)
        record = annotated_record(picture.annotations, CATEGORIES, *picture.pixels.shape[:2])
        records[hashlib.sha256(content).hexdigest()] = record
    return records


class PageServer:
    """The whole application without Ray, behind what its tests change or look at.

    Attributes:
        requests: query of each detection.
        problem: status, document and headers of the next answers to detections, instead of a record.
        key: asked for where set.
        delay: seconds before an answer.
    """

    def __init__(self, detectors: Mapping[str, FunctionDetector]) -> None:
        self.detectors = detectors
        self.requests: list[dict[str, str]] = []
        self.problem: tuple[int, dict[str, Any], dict[str, str]] | None = None
        self.key: str | None = None
        self.delay = 0.0
        self.gate = guarded(detectors, ServeConfig(max_bytes=MAX_BYTES)).gate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        if scope["type"] == "http" and (refusal := await self._refusal(request)) is not None:
            await refusal(scope, receive, send)
        else:
            await self.gate(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        if not request.url.path.startswith("/v1/"):
            return None
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return refusal(401, {"title": "Unauthorized", "status": 401, "detail": "no key"})
        if request.url.path != "/v1/detect":
            return None
        self.requests.append(dict(request.query_params))
        await asyncio.sleep(self.delay)
        return None if self.problem is None else refusal(*self.problem)


def refusal(status: int, document: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(document, status, headers, media_type="application/problem+json")


@contextmanager
def running(app: Any) -> Iterator[str]:
    """An application on a free port of this machine; gives its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.should_exit = True
            thread.join(timeout=30)
