"""One detector process of a labelling run: uris in, label rows out, exactly one for each.

Ray calls a worker from two threads (`CONCURRENT_CALLS`): while one call's images are in the network, the other call
reads its files and builds its rows. The network itself is only ever used by one thread.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.fs
import torch

from maskrcnn_core.config import Category
from maskrcnn_core.errors import ImageError, StorageError
from maskrcnn_core.inference.records import ImageRecord, record_schema, records_to_table
from pipelines import storage
from pipelines.cluster import physical_cores
from pipelines.label_progress import Board

CONCURRENT_CALLS = 2

# An image that ended this many processes in a row is given up.
_MOST_CRASHES = 2

# No image that can be decoded within the pixel limit needs more encoded bytes than this for each pixel
# (16-bit RGBA without compression); the constant leaves room for metadata.
_ENCODED_BYTES_PER_PIXEL = 8
_ENCODED_BYTES_EXTRA = 64 << 20

_LONGEST_ERROR = 300

# Single images fail for reasons of their own; so many in a row mean a broken detector (as a lost CUDA context is).
_MOST_FAILED_IN_A_ROW = 16


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker loads and drives its detector.

    Attributes:
        checkpoint ... max_detections: as `load_predictor` takes them.
        threads: CPU threads of the network; 0 = this node's cores / workers_per_node.
        workers_per_node: how many workers share a node.
        group_size: images given to the detector at once.
        readers: files read at the same time.
    """

    checkpoint: str
    device: str
    precision: str
    batch_pixels: int
    max_pixels: int
    apply_exif: bool
    min_score: float | None
    max_detections: int | None
    threads: int = 0
    workers_per_node: int = 1
    group_size: int = 8
    readers: int = 16


class Predicting(Protocol):
    """The part of `maskrcnn_core.inference.predictor.Predictor` that a worker uses."""

    @property
    def fingerprint(self) -> str:
        """Of weights and settings."""
        ...

    @property
    def categories(self) -> tuple[Category, ...]:
        """In label order."""
        ...

    def predict(self, encoded: Sequence[bytes | ImageError]) -> list[ImageRecord]:
        """One record for each image, in order."""
        ...


class LoadPredictor(Protocol):
    """Signature of `maskrcnn_core.inference.predictor.load_predictor`."""

    def __call__(
        self,
        checkpoint: str,
        *,
        device: str,
        precision: str,
        batch_pixels: int,
        max_pixels: int,
        apply_exif: bool,
        min_score: float | None,
        max_detections: int | None,
    ) -> Predicting:
        """Builds the detector."""
        ...


class LabelWorker:
    """Callable for `map_batches`: a table of image_id, uri becomes a table of label rows."""

    def __init__(self, load: LoadPredictor, settings: WorkerSettings, board: Board) -> None:
        self._board = board
        self._group_size = settings.group_size
        self._most_bytes = settings.max_pixels * _ENCODED_BYTES_PER_PIXEL + _ENCODED_BYTES_EXTRA
        self._failed_in_a_row = 0
        self._readers = ThreadPoolExecutor(settings.readers, "read")
        # OpenMP keeps a team of threads for every thread that computes: one thread, one team.
        self._model_thread = ThreadPoolExecutor(1, "detect")
        self._predictor = self._model_thread.submit(_load, load, settings).result()
        self._schema = record_schema(self._predictor.categories)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Label rows for the images of `rows`, in order; raises only where no image is at fault."""
        ids, uris = rows.column("image_id").to_pylist(), rows.column("uri").to_pylist()
        records: list[ImageRecord] = []
        for start in range(0, len(ids), self._group_size):
            group = slice(start, start + self._group_size)
            encoded = list(self._readers.map(self._read, uris[group]))
            records += self._model_thread.submit(self._detect, ids[group], encoded).result()
        return records_to_table(ids, uris, records, self._predictor.fingerprint, self._schema)

    def _read(self, uri: str) -> bytes | ImageError:
        return read_image(uri, self._most_bytes)

    def _detect(self, ids: Sequence[int], encoded: Sequence[bytes | ImageError]) -> list[ImageRecord]:
        key = ids[0]
        crashed = self._board.begin(key) > 1
        records = None if crashed else self._try_together(encoded)
        if records is None:
            records = self._one_by_one(ids, encoded)
        self._require_working(records)
        failed = sum(record.status != "ok" for record in records)
        self._board.done(key, len(records), sum(len(record.detections) for record in records), failed)
        return records

    def _try_together(self, encoded: Sequence[bytes | ImageError]) -> list[ImageRecord] | None:
        try:
            return self._predictor.predict(encoded)
        except Exception:  # its cause comes out image by image, as that image's row
            return None

    def _one_by_one(self, ids: Sequence[int], encoded: Sequence[bytes | ImageError]) -> list[ImageRecord]:
        """After the detector failed on a group: its images alone, so that only the culprits get `failed`."""
        records: list[ImageRecord] = []
        for image_id, image in zip(ids, encoded, strict=True):
            key = -1 - image_id  # a name of its own beside the group's
            crashes = self._board.begin(key) - 1
            try:
                if crashes >= _MOST_CRASHES:
                    raise ImageError("failed", f"ended the detector's process {crashes} times")
                records += self._predictor.predict([image])
            except ImageError as error:
                records.append(ImageRecord(error.status, str(error), None, None))
            except Exception as error:
                records.append(ImageRecord("failed", _one_line(error), None, None))
            self._board.done(key, 0, 0, 0)
        return records

    def _require_working(self, records: Sequence[ImageRecord]) -> None:
        """Ends the run where the fault is not in the images, before all of them become failed rows."""
        for record in records:
            if record.status == "ok":
                self._failed_in_a_row = 0
            self._failed_in_a_row += record.status == "failed"
        if self._failed_in_a_row >= _MOST_FAILED_IN_A_ROW:
            raise RuntimeError(
                f"the detector failed on {self._failed_in_a_row} images in a row, the last time with: "
                f"{[record.error for record in records if record.status == 'failed'][-1]}"
            )


def read_image(uri: str, most_bytes: int) -> bytes | ImageError:
    """An image file's bytes, or why there are none."""
    try:
        filesystem, path = storage.filesystem_and_path(uri)
        with filesystem.open_input_file(path) as stream:
            size = stream.size()
            if size > most_bytes:
                return ImageError("too_large", f"the file has {size} bytes, at most {most_bytes} are read")
            content: bytes = stream.read()
            return content
    except FileNotFoundError:
        return ImageError("missing", "no such file")
    except (OSError, StorageError) as error:
        return ImageError("unreadable", _one_line(error))


def _load(load: LoadPredictor, settings: WorkerSettings) -> Predicting:
    # Ray starts its workers with OMP_NUM_THREADS=1.
    torch.set_num_threads(settings.threads or max(1, physical_cores() // settings.workers_per_node))
    return load(
        settings.checkpoint,
        device=settings.device,
        precision=settings.precision,
        batch_pixels=settings.batch_pixels,
        max_pixels=settings.max_pixels,
        apply_exif=settings.apply_exif,
        min_score=settings.min_score,
        max_detections=settings.max_detections,
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_LONGEST_ERROR]
