"""One detector process of a labelling run: uris in, label rows out, exactly one for each.

Ray calls a worker from two threads (`CONCURRENT_CALLS`): while one call's images are in the network, the other call
reads its files and builds its rows. The network itself is only ever used by one thread.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import pyarrow as pa
import pyarrow.fs
import torch

from maskrcnn_core.config import Category
from maskrcnn_core.data.proposals import ImageProposals
from maskrcnn_core.errors import ImageError, StorageError
from maskrcnn_core.inference.proposal_records import ProposalRecord, failed_proposals, proposals_to_table
from maskrcnn_core.inference.records import ImageRecord, record_schema, records_to_table
from maskrcnn_core.inference.settings import PredictorSettings
from pipelines import storage
from pipelines.cluster import physical_cores
from pipelines.label_progress import Board
from pipelines.proposal_files import open_proposals

CONCURRENT_CALLS = 2

Record: TypeAlias = ImageRecord | ProposalRecord
_Proposals: TypeAlias = Sequence[ImageProposals | ImageError] | None

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
        checkpoint, predictor: as `load_predictor` takes them.
        proposals: where the regions come from instead of the RPN; empty = the RPN.
        threads: CPU threads of the network; 0 = this node's cores / workers_per_node.
        workers_per_node: how many workers share a node.
        group_size: images given to the detector at once.
        readers: files read at the same time.
    """

    checkpoint: str
    predictor: PredictorSettings
    proposals: str = ""
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

    @property
    def max_proposals(self) -> int:
        """How many given proposals of an image are looked at."""
        ...

    def predict(self, encoded: Sequence[bytes | ImageError], proposals: _Proposals = None) -> list[ImageRecord]:
        """One record for each image, in order; `proposals` replace the RPN's."""
        ...

    def propose(self, encoded: Sequence[bytes | ImageError]) -> list[ProposalRecord]:
        """The RPN's proposals of each image, in order."""
        ...


class LoadPredictor(Protocol):
    """Signature of `maskrcnn_core.inference.predictor.load_predictor`."""

    def __call__(self, checkpoint: str, settings: PredictorSettings) -> Predicting:
        """Builds the detector."""
        ...


class LabelWorker:
    """Callable for `map_batches`: a table of image_id, uri becomes a table of label rows."""

    def __init__(self, load: LoadPredictor, settings: WorkerSettings, board: Board) -> None:
        self._board = board
        self._group_size = settings.group_size
        self._most_bytes = settings.predictor.max_pixels * _ENCODED_BYTES_PER_PIXEL + _ENCODED_BYTES_EXTRA
        self._failed_in_a_row = 0
        self._readers = ThreadPoolExecutor(settings.readers, "read")
        # OpenMP keeps a team of threads for every thread that computes: one thread, one team.
        self._model_thread = ThreadPoolExecutor(1, "detect")
        self._predictor = self._model_thread.submit(_load, load, settings).result()
        self._schema = record_schema(self._predictor.categories)
        self._proposes = settings.predictor.record == "proposals"
        self._proposals = open_proposals(settings.proposals, "proposals") if settings.proposals else None

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Label rows for the images of `rows`, in order; raises only where no image is at fault."""
        ids, uris = rows.column("image_id").to_pylist(), rows.column("uri").to_pylist()
        records: list[Record] = []
        for start in range(0, len(ids), self._group_size):
            group = slice(start, start + self._group_size)
            encoded = list(self._readers.map(self._read, uris[group]))
            proposals = None if self._proposals is None else [self._read_proposals(image_id) for image_id in ids[group]]
            records += self._model_thread.submit(self._detect, ids[group], encoded, proposals).result()
        return self._table(ids, uris, records)

    def _table(self, ids: Sequence[int], uris: Sequence[str], records: Sequence[Record]) -> pa.Table:
        fingerprint = self._predictor.fingerprint
        if self._proposes:
            proposals = [record for record in records if isinstance(record, ProposalRecord)]
            return proposals_to_table(ids, uris, proposals, fingerprint)
        detections = [record for record in records if isinstance(record, ImageRecord)]
        return records_to_table(ids, uris, detections, fingerprint, self._schema)

    def _read(self, uri: str) -> bytes | ImageError:
        return read_image(uri, self._most_bytes)

    def _read_proposals(self, image_id: int) -> ImageProposals | ImageError:
        assert self._proposals is not None
        try:
            return self._proposals.read(image_id, self._predictor.max_proposals)
        except ImageError as error:
            return error

    def _detect(self, ids: Sequence[int], encoded: Sequence[bytes | ImageError], proposals: _Proposals) -> list[Record]:
        key = ids[0]
        crashed = self._board.begin(key) > 1
        records = None if crashed else self._try_together(encoded, proposals)
        if records is None:
            records = self._one_by_one(ids, encoded, proposals)
        self._require_working(records)
        failed = sum(record.status != "ok" for record in records)
        self._board.done(key, len(records), sum(_num_found(record) for record in records), failed)
        return records

    def _predict(self, encoded: Sequence[bytes | ImageError], proposals: _Proposals) -> list[Record]:
        if self._proposes:
            return [*self._predictor.propose(encoded)]
        return [*self._predictor.predict(encoded, *([] if proposals is None else [proposals]))]

    def _try_together(self, encoded: Sequence[bytes | ImageError], proposals: _Proposals) -> list[Record] | None:
        try:
            return self._predict(encoded, proposals)
        except Exception:  # its cause comes out image by image, as that image's row
            return None

    def _one_by_one(
        self, ids: Sequence[int], encoded: Sequence[bytes | ImageError], proposals: _Proposals
    ) -> list[Record]:
        """After the detector failed on a group: its images alone, so that only the culprits get `failed`."""
        records: list[Record] = []
        for place, (image_id, image) in enumerate(zip(ids, encoded, strict=True)):
            key = -1 - image_id  # a name of its own beside the group's
            crashes = self._board.begin(key) - 1
            try:
                if crashes >= _MOST_CRASHES:
                    raise ImageError("failed", f"ended the detector's process {crashes} times")
                records += self._predict([image], None if proposals is None else [proposals[place]])
            except ImageError as error:
                records.append(self._failure(error.status, str(error)))
            except Exception as error:
                records.append(self._failure("failed", _one_line(error)))
            self._board.done(key, 0, 0, 0)
        return records

    def _failure(self, status: str, error: str) -> Record:
        return failed_proposals(status, error) if self._proposes else ImageRecord(status, error, None, None)

    def _require_working(self, records: Sequence[Record]) -> None:
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


def _num_found(record: Record) -> int:
    return len(record.scores if isinstance(record, ProposalRecord) else record.detections)


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
    return load(settings.checkpoint, settings.predictor)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_LONGEST_ERROR]
