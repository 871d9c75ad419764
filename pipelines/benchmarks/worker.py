"""How busy a labelling worker keeps its GPU: a real worker, with a detector in which only the network is replaced.

Images are read, decoded, grouped into batches and packed as for a GPU, and rows are built and written. A batch takes
the time that it is said to take. Beside it the same worker with a detector that is drained after every group of images,
as where each group is a call of its own.
"""

import os
import random
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import Category
from maskrcnn_core.data.coco.dataset import load_coco
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.batch_stream import BatchPipeline, Steps
from maskrcnn_core.inference.device_preparation import DevicePreparation
from maskrcnn_core.inference.preparation import Preparation, PreparedBatch, PreparedImage, Request
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.detections import DetectionColumns, DetectionRecord
from maskrcnn_core.records.labels import ImageRecord
from pipelines.benchmarks.config import WorkerBenchmarkRun
from pipelines.benchmarks.peer import machine, write_figures
from pipelines.images.manifest import build_manifest
from pipelines.images.reading import ImageReader
from pipelines.images.source import open_source
from pipelines.labelling.progress import ProgressBoard
from pipelines.labelling.worker import LabelWorker
from pipelines.labelling.worker_settings import CONCURRENT_CALLS, WorkerSettings
from pipelines.labels import run_folder
from pipelines.labels.chunk_plan import ChunkPlan
from pipelines.labels.run_folder import RunIdentity

# As of a labelling run on a GPU.
_GROUP_SIZE = 256

# (width, height) and about how many of a thousand images of COCO train2017 have it.
_COMMON_SIZES = {
    (640, 480): 210,
    (640, 427): 140,
    (480, 640): 75,
    (640, 426): 72,
    (427, 640): 44,
    (500, 375): 38,
    (640, 428): 33,
    (640, 425): 27,
    (640, 360): 22,
    (640, 424): 21,
    (500, 333): 19,
    (612, 612): 15,
    (426, 640): 14,
    (375, 500): 13,
    (640, 429): 12,
    (640, 640): 11,
    (640, 512): 10,
    (500, 334): 9,
    (428, 640): 9,
    (640, 423): 8,
    (640, 478): 8,
    (425, 640): 7,
    (640, 430): 7,
    (640, 383): 6,
    (500, 500): 6,
    (480, 360): 5,
    (333, 500): 5,
    (640, 400): 5,
    (640, 431): 4,
    (500, 332): 4,
    (424, 640): 4,
}
# The others have a longer side of 640 and any shorter one, three in four of them wider than high.
_TAIL_SHARE = 0.137
_LANDSCAPE_SHARE = 0.75
_LEAST_SIDE, _MOST_SIDE = 200, 640

_OBJECTS = 20
_RUNS = "PPYo1" * 20


@dataclass(frozen=True)
class WorkerWay:
    """One way of giving images to the detector.

    Attributes:
        name: what it is.
        busy: share of the time in which the GPU computes, from its first batch to the end of its last.
        mean_batch: images of a batch.
        images_per_second: in that time.
        waiting: share in which the detector stood still for want of images, as the worker counts it.
    """

    name: str
    busy: float
    mean_batch: float
    images_per_second: float
    waiting: float


@dataclass(frozen=True)
class WorkerComparison:
    """Both ways.

    Attributes:
        ways: drained at every group, and one stream.
        images: of each; sizes: different ones among them.
        machine: what it ran on.
    """

    ways: tuple[WorkerWay, ...]
    images: int
    sizes: int
    machine: str


def benchmark_worker(run: WorkerBenchmarkRun) -> WorkerComparison:
    """Measure it.

    Raises:
        AnnotationError, StorageError: `annotations` cannot be read.
    """
    sizes = _sizes(run)
    with tempfile.TemporaryDirectory(prefix="worker-") as scratch:
        images = Path(scratch) / "images"
        _write_images(images, sizes)
        ways = tuple(
            _measure(run, images, f"{scratch}/{place}", name, drained_every)
            for place, (name, drained_every) in enumerate([("drained at every group", _GROUP_SIZE), ("one stream", 0)])
        )
    result = WorkerComparison(ways, run.num_images, len(set(sizes)), machine())
    write_figures(result, run.output)
    return result


class SimulatedPredictor:
    """A detector on a GPU that only takes time, and finds the same in every image.

    Args:
        run: how long it takes.
        drained_every: so many images, after which all batches are finished before the next is begun; 0 = never.
    """

    fingerprint = "simulated"
    categories = (Category(1, "thing"),)
    max_proposals = 0

    def __init__(self, run: WorkerBenchmarkRun, drained_every: int) -> None:
        rule = InputConfig(short_side=run.short_side, long_side=round(run.short_side * 5 / 3))
        settings = PredictorSettings(batch_pixels=run.batch_pixels, decode_threads=run.decode_threads)
        cpu = torch.device("cpu")
        preparation = Preparation(rule, settings, DevicePreparation(rule, cpu), in_powers=True)
        self._pipeline = BatchPipeline(preparation, cpu, overlapped=True)
        self._image_seconds, self._batch_seconds = run.image_ms / 1000, run.batch_ms / 1000
        self._drained_every = drained_every
        self.batch_sizes: list[int] = []
        self.began = self.ends = self.busy = 0.0
        self._found = DetectionColumns.of(
            [DetectionRecord(1, "thing", 0.5, (1.0, 1.0, 9.0, 9.0), _RUNS) for _ in range(_OBJECTS)]
        )

    @property
    def idle_since(self) -> float | None:
        """When the last batch was finished; None while one is under way."""
        return self._pipeline.idle_since

    def predict_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ImageRecord]]]:
        """The same objects in each image."""
        steps = Steps(self._start, self._finish)
        if not self._drained_every:
            yield from self._pipeline.stream(requests, steps)
            return
        for group in _groups(requests, self._drained_every):
            yield from self._pipeline.stream(group, steps)

    def propose_each(self, requests: Iterable[Request | None]) -> Any:
        """Not asked for."""
        raise RuntimeError("the simulated detector makes no proposals")

    def _start(self, batch: PreparedBatch) -> tuple[list[PreparedImage], float]:
        """The images, and when the GPU has done them, after all those before."""
        now, seconds = time.monotonic(), self._batch_seconds + len(batch.items) * self._image_seconds
        self.began = self.began or now
        self.ends = max(now, self.ends) + seconds
        self.busy += seconds
        self.batch_sizes.append(len(batch.items))
        return batch.items, self.ends

    def _finish(self, started: tuple[list[PreparedImage], float]) -> list[ImageRecord]:
        items, ends = started
        time.sleep(max(0.0, ends - time.monotonic()))
        return [ImageRecord("ok", None, *item.original_size[::-1], self._found) for item in items]


class DelayedReader:
    """Local files as from storage that takes a while for each."""

    def __init__(self, seconds: float) -> None:
        self._reader, self._seconds = ImageReader(1 << 30), seconds

    def read(self, uri: str) -> bytes | ImageError:
        """An image's bytes, later."""
        time.sleep(self._seconds)
        return self._reader.read(uri)

    def late(self, uri: str, seconds: float) -> ImageError:
        """As `ImageReader.late`."""
        return self._reader.late(uri, seconds)


def _groups(requests: Iterable[Request | None], size: int) -> Iterator[list[Request]]:
    """So many requests each, and what there is at a pause."""
    group: list[Request] = []
    for request in requests:
        if request is not None:
            group.append(request)
        if len(group) == size or (group and request is None):
            yield group
            group = []
    if group:
        yield group


def _measure(run: WorkerBenchmarkRun, images: Path, output: str, name: str, drained_every: int) -> WorkerWay:
    manifest = build_manifest(open_source(str(images)), run_folder.manifest_folder(output))
    run_folder.claim_run(output, RunIdentity("simulated", {}, ""))
    simulated = SimulatedPredictor(run, drained_every)
    board = ProgressBoard()
    settings = WorkerSettings(
        "simulated",
        PredictorSettings(),
        threads=torch.get_num_threads(),
        group_size=_GROUP_SIZE,
        readers=run.readers,
        manifest=manifest,
        output=output,
    )
    worker = LabelWorker(lambda *_: simulated, settings, board, DelayedReader(run.delay_ms / 1000))
    _, chunks = run_folder.chunks_done(output, manifest, ChunkPlan(run.rows_per_file))
    with ThreadPoolExecutor(CONCURRENT_CALLS) as threads:
        labelled = sum(file.tally.images for file in threads.map(worker.label_chunk, chunks))
    if labelled != run.num_images:
        raise RuntimeError(f"expected {run.num_images} rows, got {labelled}")
    seconds = simulated.ends - simulated.began
    return WorkerWay(
        name=name,
        busy=simulated.busy / seconds,
        mean_batch=sum(simulated.batch_sizes) / len(simulated.batch_sizes),
        images_per_second=run.num_images / seconds,
        waiting=board.snapshot().waiting_share,
    )


def _sizes(run: WorkerBenchmarkRun) -> list[tuple[int, int]]:
    """(width, height) of each image, in random order."""
    dice = random.Random(run.seed)
    if run.annotations:
        given = [(width, height) for height, width in _annotated(run.annotations)]
        return [dice.choice(given) for _ in range(run.num_images)]
    return [_common_size(dice) for _ in range(run.num_images)]


def _annotated(path: str) -> list[list[int]]:
    """Height and width of each image of an annotation file."""
    dataset = load_coco(path, require_masks=False, masks=False, keypoints=False, on_fault="drop")
    sizes: list[list[int]] = dataset.sizes.tolist()
    return sizes


def _common_size(dice: random.Random) -> tuple[int, int]:
    if dice.random() >= _TAIL_SHARE:
        return dice.choices([*_COMMON_SIZES], [*_COMMON_SIZES.values()])[0]
    other = dice.randint(_LEAST_SIDE, _MOST_SIDE)
    return (_MOST_SIDE, other) if dice.random() < _LANDSCAPE_SHARE else (other, _MOST_SIDE)


def _write_images(folder: Path, sizes: list[tuple[int, int]]) -> None:
    """A file for each size, and a link to it for each image."""
    folder.mkdir()
    first: dict[tuple[int, int], Path] = {}
    for number, (width, height) in enumerate(sizes):
        path = folder / f"{number:07d}.jpg"
        if (known := first.setdefault((width, height), path)) is not path:
            os.link(known, path)
        else:
            Image.fromarray(np.full((height, width, 3), 99, np.uint8)).save(path)
