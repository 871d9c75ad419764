"""A server for the page: the routes of the interface that the page asks, over detectors that are plain functions.

`small` is a real predictor with random weights; `drawn` knows the generated pictures, and answers with their
annotations as records.
"""

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
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from maskrcnn_core.config.model import Category
from maskrcnn_core.data.generated.pictures import CATEGORIES, generate_picture
from maskrcnn_core.data.segmentation import rasterise
from maskrcnn_core.inference.predictor import Predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table
from pipelines.serving.page.page import EXAMPLE_SEED, EXAMPLE_SIZE, page_routes
from tests.small_detector import FINDING, finding_detector

Record = dict[str, Any]
Detect = Callable[[bytes], Record]
MAX_BODY = 2_000_000


def label_record(record: ImageRecord, model: str, categories: Sequence[Category]) -> Record:
    """The row that labelling writes."""
    table = records_to_table([0], ["upload"], [record], model, record_schema(categories))
    return table.to_pylist()[0]


def small_detect() -> tuple[Detect, Sequence[Category]]:
    predictor = Predictor(finding_detector(), FINDING, PredictorSettings(device="cpu"))
    lock = threading.Lock()

    def detect(content: bytes) -> Record:
        with lock:
            return label_record(predictor.predict([content])[0], predictor.fingerprint, predictor.categories)

    return detect, predictor.categories


def annotated_record(
    annotations: Sequence[Mapping[str, Any]], categories: Sequence[Category], height: int, width: int
) -> Record:
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
    return label_record(ImageRecord("ok", None, width, height, detections), "0123456789abcdef" * 2, categories)


def drawn_detect(pictures: Mapping[str, Record]) -> Detect:
    """Knows pictures by the digest of their bytes; any other has nothing in it."""

    def detect(content: bytes) -> Record:
        known = pictures.get(hashlib.sha256(content).hexdigest())
        if known is not None:
            return known
        width, height = Image.open(io.BytesIO(content)).size
        return label_record(ImageRecord("ok", None, width, height), "none", CATEGORIES)

    return detect


def example_contents(routes: Sequence[BaseRoute]) -> dict[int, bytes]:
    """The page's example pictures, by number, as its routes give them."""
    with running(Starlette(routes=routes)) as address:
        facts = json.loads(urllib.request.urlopen(f"{address}page/facts.json", timeout=30).read())
        places = [example["address"] for example in facts["examples"]]
        return {
            int(place.rpartition("/")[2].removesuffix(".jpg")): urllib.request.urlopen(address + place).read()
            for place in places
        }


def example_records(contents: Mapping[int, bytes]) -> dict[str, Record]:
    """Records of the page's example pictures, by the digest of their files."""
    records = {}
    for number, content in contents.items():
        picture = generate_picture(number, seed=EXAMPLE_SEED, image_size=EXAMPLE_SIZE)
        record = annotated_record(picture.annotations, CATEGORIES, *picture.pixels.shape[:2])
        records[hashlib.sha256(content).hexdigest()] = record
    return records


class PageServer:
    """The application, and what its tests change or look at.

    Attributes:
        requests: query of each detection.
        problem: status, document and headers of the next answers, instead of a record.
        key: asked for where set.
        delay: seconds before an answer.
    """

    def __init__(self, detectors: Mapping[str, tuple[Detect, Sequence[Category]]]) -> None:
        self.detectors = detectors
        self.requests: list[dict[str, str]] = []
        self.problem: tuple[int, dict[str, Any], dict[str, str]] | None = None
        self.key: str | None = None
        self.delay = 0.0
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/detect", self.detect, methods=["POST"]),
            *page_routes(),
        ]
        self.app = Starlette(routes=routes)

    def models(self, request: Request) -> Response:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return problem(401, {"title": "Unauthorized", "status": 401, "detail": "no key"})
        models = [
            {
                "name": name,
                "preset": "small",
                "fingerprint": "0" * 32,
                "categories": [{"id": category.id, "name": category.name} for category in categories],
                "keypoints": None,
                "limits": {"max_bytes": MAX_BODY},
            }
            for name, (_, categories) in self.detectors.items()
        ]
        return JSONResponse({"models": models})

    async def detect(self, request: Request) -> Response:
        self.requests.append(dict(request.query_params))
        content = await request.body()
        await run_in_threadpool(time.sleep, self.delay)
        if self.problem is not None:
            status, document, headers = self.problem
            return problem(status, document, headers)
        detect = self.detectors[request.query_params["model"]][0]
        begin = time.perf_counter()
        record = await run_in_threadpool(detect, content)
        spent = 1000 * (time.perf_counter() - begin)
        timing = {"decode_ms": 0.1 * spent, "queue_ms": 1.5, "model_ms": 0.9 * spent}
        return JSONResponse({**record, "timing": timing})


def problem(status: int, document: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(document, status, headers, media_type="application/problem+json")


@contextmanager
def running(app: Starlette) -> Iterator[str]:
    """The application on a free port of this machine; gives its address."""
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
