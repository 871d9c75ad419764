"""`jobs.serve` under load, beside a bare loop over its predictor and beside a plain server with torchvision's detector.

Clients ask one after the other, each as soon as it has its answer: a closed loop, whose rate is what the server gives.
Every answer of ours is held against what the loop found in the same image.
"""

import contextlib
import http.client
import itertools
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskrcnn_core.errors import UserError
from maskrcnn_core.inference.predictor import load_predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.labels import ImageRecord
from pipelines.benchmarks.config import BenchmarkRun, ServingBenchmarkRun
from pipelines.benchmarks.peer import (
    contents_of,
    imported_predictor,
    long_side,
    machine,
    peer_of,
    use_threads,
    write_figures,
)
from pipelines.benchmarks.plain_server import serve_plainly
from pipelines.serving.config import ServeConfig, ServeRun
from pipelines.serving.renderings import label_row
from pipelines.serving.run import serving

_START_SECONDS = 180.0
_CLOSE_SCORE, _CLOSE_BOX = 1e-3, 0.1


@dataclass(frozen=True)
class ServingWay:
    """One way to answer.

    Attributes:
        name: of the way.
        images_per_second: answered.
        ratio: of that to the loop's.
        p50_ms, p99_ms: from a request's first byte to its answer's last.
        lost: requests without an answer, or with another status than 200.
        wrong: answers that differ from the loop's by more than rounding; None where it is not the same detector.
        equal: share of the answers that are the loop's in every bit; None as before.
        batch: images that the detector worked on together, mean; None where it does not say.
    """

    name: str
    images_per_second: float
    ratio: float
    p50_ms: float
    p99_ms: float
    lost: int = 0
    wrong: int | None = None
    equal: float | None = None
    batch: float | None = None


@dataclass(frozen=True)
class ServingComparison:
    """The ways, the loop first, and what they had in common.

    Attributes:
        ways: bare loop, jobs.serve and, without a checkpoint of one's own, the plain server.
        requests, clients: of each server.
        images: different ones among the requests.
        machine: what it ran on.
    """

    ways: tuple[ServingWay, ...]
    requests: int
    clients: int
    images: int
    machine: str


def benchmark_serve(run: ServingBenchmarkRun) -> ServingComparison:
    """Measure the ways one after the other.

    Raises:
        StorageError: the folder has no images.
    """
    threads = use_threads(run.threads)
    peer_run = BenchmarkRun(
        images=run.images, num_images=run.num_images, short_side=run.short_side, max_detections=run.max_detections
    )
    contents = contents_of(peer_run)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = run.checkpoint or str(Path(scratch) / "checkpoint")
        if not run.checkpoint:
            imported_predictor(peer_of(peer_run), peer_run, Path(checkpoint))
        loop, expected = _loop(run, checkpoint, contents)
        ways = [loop, _served(run, checkpoint, threads, contents, expected, loop)]
        if not run.checkpoint:
            ways.append(_plain(run, peer_run, threads, contents, loop))
    device = torch.device("cuda" if run.use_gpu else "cpu")
    result = ServingComparison(tuple(ways), run.requests, run.clients, len(contents), machine(device))
    write_figures(result, run.output)
    return result


def _loop(run: ServingBenchmarkRun, checkpoint: str, contents: Sequence[bytes]) -> tuple[ServingWay, list[Any]]:
    """The predictor with all images at hand, and what it finds in each."""
    settings = PredictorSettings(device="cuda" if run.use_gpu else "cpu", batch_pixels=run.batch_pixels)
    predictor = load_predictor(checkpoint, settings)
    predictor.predict(contents[: min(2, len(contents))])
    started = time.perf_counter()
    records: list[ImageRecord] = []
    while len(records) < run.requests:
        records += predictor.predict(contents[: run.requests - len(records)])
    seconds = time.perf_counter() - started
    rows = [label_row(record, predictor.fingerprint)["detections"] for record in records[: len(contents)]]
    rate, each = run.requests / seconds, 1000 * seconds / run.requests
    return ServingWay("bare loop over the predictor", rate, 1.0, each, each), rows


def _served(
    run: ServingBenchmarkRun,
    checkpoint: str,
    threads: int,
    contents: Sequence[bytes],
    expected: Sequence[Any],
    loop: ServingWay,
) -> ServingWay:
    config = ServeConfig(
        use_gpu=run.use_gpu,
        threads=threads,
        batch_pixels=run.batch_pixels,
        images_under_way=max(64, run.clients),
        max_requests=max(128, run.clients),
        timeout=600.0,
    )
    port = _free_port()
    with serving(ServeRun(checkpoint, port=port, serve=config)):
        load = _Load(port, "/v1/detect", contents, run.clients)
        load.run(2 * run.clients)
        load.run(run.requests)
    found = [(index, json.loads(body)) for index, body in load.answers]
    kinds = [_compared(record["detections"], expected[index]) for index, record in found]
    batches = [record["timing"]["batch"] for _, record in found]
    return load.way(
        "jobs.serve",
        loop,
        wrong=kinds.count("wrong"),
        equal=kinds.count("equal") / max(1, len(kinds)),
        batch=statistics.mean(batches) if batches else None,
    )


def _plain(
    run: ServingBenchmarkRun, peer: BenchmarkRun, threads: int, contents: Sequence[bytes], loop: ServingWay
) -> ServingWay:
    port = _free_port()
    device = "cuda" if run.use_gpu else "cpu"
    settings = (port, peer.short_side, long_side(peer), peer.max_detections, threads, device)
    program = f"from {serve_plainly.__module__} import serve_plainly; serve_plainly(*{settings!r})"
    command = [sys.executable, "-c", program]
    with _process(command, port):
        load = _Load(port, "/predict", contents, run.clients)
        load.run(min(run.requests, 8))
        load.run(run.requests)
    return load.way("plain FastAPI with torchvision", loop)


class _Load:
    """Clients of a server; the figures are those of the last run."""

    def __init__(self, port: int, path: str, contents: Sequence[bytes], clients: int) -> None:
        self._port, self._path, self._contents, self._clients = port, path, contents, clients
        self.answers: list[tuple[int, bytes]] = []
        self._seconds: list[float] = []
        self._lost = 0
        self._took = 0.0

    def run(self, requests: int) -> None:
        """So many requests, from all clients together."""
        self.answers, self._seconds, self._lost = [], [], 0
        numbers = itertools.chain(range(requests))
        lock = threading.Lock()
        threads = [threading.Thread(target=self._client, args=(numbers, lock)) for _ in range(self._clients)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._took = time.perf_counter() - started

    def _client(self, numbers: Iterator[int], lock: threading.Lock) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            index = number % len(self._contents)
            started = time.perf_counter()
            status, body = _ask(connection, self._path, self._contents[index])
            with lock:
                if status == 200:
                    self._seconds.append(time.perf_counter() - started)
                    self.answers.append((index, body))
                else:
                    self._lost += 1
        connection.close()

    def way(self, name: str, loop: ServingWay, **more: Any) -> ServingWay:
        """The figures."""
        times = sorted(self._seconds) or [0.0]
        rate = len(self._seconds) / self._took
        p50, p99 = (1000 * times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.99))
        return ServingWay(name, rate, rate / loop.images_per_second, p50, p99, self._lost, **more)


def _ask(connection: http.client.HTTPConnection, path: str, content: bytes) -> tuple[int, bytes]:
    try:
        connection.request("POST", path, content)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return 0, b""


def _compared(found: Sequence[Any], expected: Sequence[Any]) -> str:
    """`equal` in every bit, `close` up to rounding, or `wrong`."""
    if found == expected:
        return "equal"
    if len(found) != len(expected):
        return "wrong"
    close = all(_is_close(one, other) for one, other in zip(found, expected, strict=True))
    return "close" if close else "wrong"


def _is_close(one: Any, other: Any) -> bool:
    same = one["category_id"] == other["category_id"] and abs(one["score"] - other["score"]) < _CLOSE_SCORE
    return same and all(abs(a - b) < _CLOSE_BOX for a, b in zip(one["bbox"], other["bbox"], strict=True))


@contextlib.contextmanager
def _process(command: Sequence[str], port: int) -> Iterator[None]:
    """A server of its own process, ready inside the block."""
    process = subprocess.Popen(command)
    try:
        _wait_for(lambda: _listens(port), process)
        yield
    finally:
        process.kill()  # jobs block the signals that end them, and children inherit that
        process.wait()


def _wait_for(holds: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _START_SECONDS
    while not holds():
        if process.poll() is not None or time.monotonic() > end:
            raise UserError("the plain server did not start; its reason stands above")
        time.sleep(0.2)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
