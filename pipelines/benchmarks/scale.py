"""What everything but the model costs, and whether it stays the same for ten times the images.

`benchmark_scale` labels tiny images with a detector that answers at once; `benchmark_manifest` builds the manifest of a
synthetic S3 inventory. Each size runs in a process of its own, whose peak memory is read at its end.
"""

import functools
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pycocotools.mask
from PIL import Image
from torch import Tensor

from maskrcnn_core.config.model import Category
from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.preparation import Request
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord
from pipelines.benchmarks.config import ScaleRun
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.connection import connect, on_cluster
from pipelines.images.manifest import build_manifest
from pipelines.images.parts import Part
from pipelines.images.source import Source
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.detector import Detector
from pipelines.labelling.run import label
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify

_CATEGORY = Category(1, "thing")
_FILES_PER_FOLDER = 5_000
_IMAGES_PER_NOTE = 100
_INVENTORY_ROWS = 1_000_000


@dataclass(frozen=True)
class ScalePoint:
    """One size.

    Attributes:
        images: how many.
        seconds: of the whole, start-up included.
        milliseconds: per image without start-up, of one worker.
        driver_bytes, worker_bytes: largest resident size of the driving process and of any worker.
        verify_seconds: that proving the run whole took; None where there are no labels.
    """

    images: int
    seconds: float
    milliseconds: float
    driver_bytes: int
    worker_bytes: int
    verify_seconds: float | None = None


def benchmark_scale(run: ScaleRun, on_point: Callable[[ScalePoint], None] | None = None) -> list[ScalePoint]:
    """Label `run.sizes` tiny images each, from files to Parquet, with a detector that costs nothing."""
    return [_reported(_in_child(_label_many, size), on_point) for size in run.sizes]


def benchmark_manifest(run: ScaleRun, on_point: Callable[[ScalePoint], None] | None = None) -> list[ScalePoint]:
    """Build the manifest of synthetic inventories with `run.sizes` entries each, on two workers."""
    return [_reported(_in_child(_list_many, size), on_point) for size in run.sizes]


def _reported(point: ScalePoint, on_point: Callable[[ScalePoint], None] | None) -> ScalePoint:
    if on_point is not None:
        on_point(point)
    return point


def _in_child(work: Callable[[int], ScalePoint], size: int) -> ScalePoint:
    """The result of `work(size)` in a new process, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(work, size, sending))
    child.start()
    sending.close()
    try:
        result: ScalePoint = receiving.recv()
    finally:
        child.join()
    return result


def _send(work: Callable[[int], ScalePoint], size: int, sending: Connection) -> None:
    sending.send(work(size))


def _peak() -> int:
    """Largest resident size of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---- labelling -------------------------------------------------------------------------------------------------------


class ConstantDetector:
    """Decodes an image and finds one object in it; leaves this process's peak memory in a file beside the images."""

    idle_since = 0.0

    def __init__(self, checkpoint: str, settings: PredictorSettings) -> None:
        self.fingerprint, self.categories, self.max_proposals = "constant", (_CATEGORY,), 0
        self._notes, self._settings = Path(checkpoint), settings

    def predict_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ImageRecord]]]:
        """The record of each image."""
        for request in filter(None, requests):
            if request.key % _IMAGES_PER_NOTE == 1:
                self._note_peak()
            yield [(request.key, self._one(request.content))]
        self._note_peak()

    def _note_peak(self) -> None:
        (self._notes / str(os.getpid())).write_text(str(_peak()))

    def _one(self, image: bytes | Tensor | ImageError) -> ImageRecord:
        try:
            if isinstance(image, ImageError):
                raise image
            assert isinstance(image, bytes)
            pixels = decode_image(image, max_pixels=self._settings.max_pixels, apply_exif=False)
        except ImageError as error:
            return ImageRecord(error.status, str(error), None, None)
        height, width = pixels.shape[-2:]
        detection = DetectionRecord(
            _CATEGORY.id, _CATEGORY.name, 0.5, (0.0, 0.0, 1.0, 1.0), _first_pixel(height, width)
        )
        return ImageRecord("ok", None, width, height, (detection,))

    def propose_each(self, requests: Iterable[Request | None]) -> Any:
        """Not asked for."""
        raise RuntimeError("the constant detector makes no proposals")


@functools.cache
def _first_pixel(height: int, width: int) -> str:
    """Run lengths of a mask of one pixel."""
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[0, 0] = 1
    counts: bytes = pycocotools.mask.encode(mask)["counts"]
    return counts.decode()


def _describe(checkpoint: str, settings: PredictorSettings) -> tuple[str, tuple[Category, ...]]:
    return "constant", (_CATEGORY,)


def _label_many(size: int) -> ScalePoint:
    with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
        images, notes = Path(scratch) / "images", Path(scratch) / "notes"
        notes.mkdir()
        _write_tiny_images(images, size)
        started = time.perf_counter()
        summary = label(
            LabelRun(
                checkpoint=str(notes),
                images=str(images),
                output=f"{scratch}/out",
                label=LabelConfig(num_workers=1, threads_per_worker=1),
                cluster=ClusterConfig(ray=True),
            ),
            detector=Detector(ConstantDetector, _describe),
        )
        seconds = time.perf_counter() - started
        if summary.statuses != {"ok": size}:
            raise RuntimeError(f"expected {size} ok rows, got {summary.statuses}")
        peaks = [int(note.read_text()) for note in notes.iterdir()]
        driver = _peak()
        started = time.perf_counter()
        if not verify(VerifyRun(f"{scratch}/out")).passed:
            raise RuntimeError("the labels do not hold every image exactly once")
        verified = time.perf_counter() - started
        return ScalePoint(size, seconds, 1000 / summary.images_per_second, driver, max(peaks), verified)


def _write_tiny_images(folder: Path, size: int) -> None:
    content = folder.with_name("one.png")
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(content)
    data = content.read_bytes()
    for start in range(0, size, _FILES_PER_FOLDER):
        below = folder / f"{start:09d}"
        below.mkdir(parents=True)
        for index in range(start, min(start + _FILES_PER_FOLDER, size)):
            (below / f"{index}.png").write_bytes(data)


# ---- manifest --------------------------------------------------------------------------------------------------------


def _list_many(size: int) -> ScalePoint:
    with tempfile.TemporaryDirectory(prefix="manifest-") as scratch:
        parts = _write_inventory(Path(scratch) / "inventory", size)
        source = Source(f"{scratch}/inventory", "inventory", parts, "")
        notes = Path(scratch) / "notes"
        notes.mkdir()

        def noting(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Any:
            def noted(*some: Any) -> Any:
                result = function(*some)
                (notes / str(os.getpid())).write_text(str(_peak()))
                return result

            return on_cluster(noted, arguments)

        with connect(ClusterConfig(num_cpus=2)):
            started = time.perf_counter()
            manifest = build_manifest(source, f"{scratch}/manifest", noting)
            seconds = time.perf_counter() - started
        if len(manifest) != size:
            raise RuntimeError(f"expected {size} images, got {len(manifest)}")
        peaks = [int(note.read_text()) for note in notes.iterdir()]
        return ScalePoint(size, seconds, 1000 * seconds / size, _peak(), max(peaks))


def _write_inventory(folder: Path, size: int) -> tuple[Part, ...]:
    folder.mkdir()
    parts = []
    for start in range(0, size, _INVENTORY_ROWS):
        count = min(_INVENTORY_ROWS, size - start)
        keys = [f"camera/{index % 997:04d}/{index:012d}.jpg" for index in range(start, start + count)]
        table = pa.table({"bucket": ["pictures"] * count, "key": keys, "size": np.full(count, 123_456)})
        path = folder / f"{start:012d}.parquet"
        pq.write_table(table, path)
        parts.append(Part("inventory", str(path), columns=("Bucket", "Key", "Size")))
    return tuple(parts)
