"""The service without Ray: the whole application on a real server of HTTP, in a thread of the test's process."""

import asyncio
import contextlib
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from maskrcnn_core.inference.predictor import load_predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.weights.checkpoint import save_checkpoint
from pipelines.serving.config import ServeConfig
from pipelines.serving.detector_feed import Detected
from pipelines.serving.detector_service import DetectorService, LoadPredictor, ServedModel
from pipelines.serving.guarded import Guarded, guarded
from tests.small_detector import FINDING, finding_detector


def save_finding_detector(folder: Path) -> str:
    """A checkpoint whose detector finds something; returns its folder."""
    save_checkpoint(folder, finding_detector().state_dict(), FINDING)
    return str(folder)


def picture(height: int = 60, width: int = 90, seed: int = 0, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(content, kind)
    return content.getvalue()


class LocalDetector:
    """`DetectorClient` of a service in this process."""

    def __init__(self, service: DetectorService) -> None:
        self.service = service

    async def detect(self, content: bytes) -> Detected:
        return await self.service.detect(content)

    async def describe(self) -> ServedModel:
        return self.service.describe()


def new_service(load: LoadPredictor = load_predictor, **settings: Any) -> DetectorService:
    return DetectorService(load, PredictorSettings(**settings), threads=1, wait=0.005)


@dataclass(frozen=True)
class Reply:
    """Of a server: status, headers by lower-case name, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class LocalServer:
    """A server that runs: where, and what it is made of."""

    port: int
    guarded: Guarded
    loop: asyncio.AbstractEventLoop

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, method: str | None = None
    ) -> Reply:
        """POST where there is a body, else GET."""
        request = urllib.request.Request(f"{self.address}{path}", body, dict(headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Reply(answer.status, _lower(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, _lower(error.headers), error.read())

    def run(self, coroutine: Any) -> Any:
        """In the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def form(*files: tuple[str, bytes], name: str = "image") -> tuple[bytes, dict[str, str]]:
    """A body of multipart/form-data and its header."""
    boundary = b"0123456789boundary"
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="%b"; filename="%b"\r\n\r\n%b\r\n'
        % (boundary, name.encode(), file.encode(), content)
        for file, content in files
    ]
    body = b"".join(parts) + b"--%b--\r\n" % boundary
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}


@dataclass
class _Started:
    loop: asyncio.AbstractEventLoop | None = None
    ready: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def local_server(models: Mapping[str, Any], config: ServeConfig | None = None) -> Iterator[LocalServer]:
    """A server in front of detectors by name."""
    application = guarded(models, config or ServeConfig())
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application.gate, log_level="error", lifespan="off"))
    started = _Started()

    async def serve() -> None:
        started.loop = asyncio.get_running_loop()
        started.ready.set()
        await server.serve([listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    started.ready.wait()
    while not server.started:
        time.sleep(0.01)
    assert started.loop is not None
    try:
        yield LocalServer(listener.getsockname()[1], application, started.loop)
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
