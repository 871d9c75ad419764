"""A server for the page: the whole application without Ray, over detectors that are plain functions.

`small` is a real predictor with random weights; `drawn` knows the generated pictures, and answers with their
annotations as records.
"""

import asyncio
import hashlib
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from maskrcnn_core.data.generated.pictures import CATEGORIES, generate_picture
from maskrcnn_core.records.labels import ImageRecord
from pipelines.serving.config import ServeConfig
from pipelines.serving.guarded import guarded
from pipelines.serving.page.page import EXAMPLE_SEED, EXAMPLE_SIZE
from tests.pipelines.serving.function_detectors import FunctionDetector, annotated_record

MAX_BYTES = 2_000_000


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
