"""Images from an object store that answers late: a GET for each in many threads, beside Arrow's HEAD and GET in 16."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from maskrcnn_core.data.files import MOST_IMAGE_BYTES
from maskrcnn_core.errors import ImageError
from pipelines import storage
from pipelines.benchmarks.config import ReadingBenchmarkRun
from pipelines.benchmarks.delayed_objects import DelayedObjects, delayed_objects
from pipelines.benchmarks.peer import machine, write_figures
from pipelines.images.reading import ImageReader
from pipelines.images.reading_threads import ReadingThreads
from pipelines.storage.s3_settings import changed_environment

_ARROW_THREADS = 16


@dataclass(frozen=True)
class ReadingWay:
    """One way of reading.

    Attributes:
        name: of it.
        images_per_second: median over the rounds.
        milliseconds: processor time of this process for an image, median.
        requests: of an image.
        server_busy: share of one core that the server computed, median.
        ratio: how many times as fast as the first way: median of the rounds' ratios.
    """

    name: str
    images_per_second: float
    milliseconds: float
    requests: float
    server_busy: float
    ratio: float


@dataclass(frozen=True)
class ReadingComparison:
    """What was measured.

    Attributes:
        ways: Arrow's, then that of labelling.
        images: of a round.
        mean_bytes: of an image.
        machine: what it ran on.
    """

    ways: tuple[ReadingWay, ...]
    images: int
    mean_bytes: float
    machine: str


@dataclass(frozen=True)
class _Round:
    rate: float
    milliseconds: float
    requests: float
    server_busy: float


def benchmark_reading(run: ReadingBenchmarkRun) -> ReadingComparison:
    """Measure it.

    Raises:
        RuntimeError: an image came with other content than the server has.
    """
    with delayed_objects(run.delay_ms / 1000.0) as server, changed_environment(_environment(server.address)):
        reader = ImageReader(MOST_IMAGE_BYTES)
        ways: dict[str, tuple[ReadingThreads, Callable[[str], bytes | ImageError]]] = {
            f"Arrow, {_ARROW_THREADS} threads": (ReadingThreads(_ARROW_THREADS, 0.0), _read_by_arrow),
            f"labelling, {run.readers} threads": (ReadingThreads(run.readers, 0.0), reader.read),
        }
        for threads, read in ways.values():  # connections are made
            _measured(threads, read, server, 2 * run.readers)
        rounds = [
            [_measured(threads, read, server, run.num_images) for threads, read in ways.values()]
            for _ in range(run.rounds)
        ]
        mean_bytes = statistics.fmean(len(body) for body in server.bodies)
    named = [(name, [measured[place] for measured in rounds]) for place, name in enumerate(ways)]
    first = [measured[0].rate for measured in rounds]
    result = ReadingComparison(
        tuple(_way(name, own, first) for name, own in named), run.num_images, mean_bytes, machine()
    )
    write_figures(result, run.output)
    return result


def _environment(address: str) -> dict[str, str]:
    """Whatever the environment says of S3, this server is asked."""
    return {
        "AWS_ENDPOINT_URL_S3": address,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_SESSION_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
    }


def _read_by_arrow(uri: str) -> bytes:
    """Arrow finds the size by a request of its own."""
    filesystem, path = storage.filesystem_and_path(uri)
    with filesystem.open_input_file(path) as stream:
        return bytes(stream.read(stream.size()))


def _measured(
    threads: ReadingThreads, read: Callable[[str], bytes | ImageError], server: DelayedObjects, images: int
) -> _Round:
    requests, busy = server.requests, server.seconds
    began, computed = time.perf_counter(), time.process_time()
    calls = [threads.submit(partial(_is_read, read, server, number)) for number in range(images)]
    if not all(call.result() for call in calls):
        raise RuntimeError("an image came with other content than the server has")
    seconds, computed = time.perf_counter() - began, time.process_time() - computed
    return _Round(
        rate=images / seconds,
        milliseconds=1000.0 * computed / images,
        requests=(server.requests - requests) / images,
        server_busy=(server.seconds - busy) / seconds,
    )


def _is_read(read: Callable[[str], bytes | ImageError], server: DelayedObjects, number: int) -> bool:
    return read(f"s3://benchmark/{number:06d}") == server.bodies[number % len(server.bodies)]


def _way(name: str, rounds: list[_Round], first: list[float]) -> ReadingWay:
    return ReadingWay(
        name,
        statistics.median(one.rate for one in rounds),
        statistics.median(one.milliseconds for one in rounds),
        statistics.median(one.requests for one in rounds),
        statistics.median(one.server_busy for one in rounds),
        statistics.median(one.rate / other for one, other in zip(rounds, first, strict=True)),
    )
