"""One detector process of a labelling run: chunks of the manifest in, label files out, one row for each image.

A worker is called from two threads (`CONCURRENT_CALLS`), whose images are one stream through the detector: while one
call builds its rows and writes them, the images of the other go on.
"""

import pickle
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import torch

from maskrcnn_core.data.proposals import ImageProposals
from maskrcnn_core.errors import ImageError, StorageError, UserError
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table
from maskrcnn_core.records.proposals import ProposalRecord, proposals_to_table
from pipelines import storage
from pipelines.cluster.connection import own_node, physical_cores
from pipelines.images.manifest import Manifest
from pipelines.images.reading import ImageReader
from pipelines.labelling.chunk_in_stream import Record
from pipelines.labelling.detector_stream import DetectorStream, Predicting
from pipelines.labelling.metrics import LabelMetrics
from pipelines.labelling.progress import Board
from pipelines.labelling.read_ahead import ReadAhead, Reading
from pipelines.labels import run_folder
from pipelines.labels.chunks import Chunk, LabelFile, read_footer, read_rows, write_labels
from pipelines.labels.proposals import open_proposals

CONCURRENT_CALLS = 2

# Images that are read before the detector takes them: what it has for the time that a slow read takes.
_GROUPS_AHEAD = 2

# No image that can be decoded within the pixel limit needs more encoded bytes than this for each pixel
# (16-bit RGBA without compression); the constant leaves room for metadata.
_ENCODED_BYTES_PER_PIXEL = 8
_ENCODED_BYTES_EXTRA = 64 << 20


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker loads and drives its detector.

    Attributes:
        checkpoint, predictor: as `load_predictor` takes them.
        proposals: where the regions come from instead of the RPN; empty = the RPN.
        threads: CPU threads of the network; 0 = its share of the machine's cores, found out in the worker.
        workers_per_node: how many workers share a machine at most; 0 = as many as it has room for.
        cpus: logical CPUs of Ray that a worker holds; 0 = it runs without Ray.
        workers_per_gpu: how many workers share a GPU.
        group_size: images that the board knows by one name, and that are suspected together after a crash.
        readers: files read at the same time.
        manifest, output: of the run.
        retry_failed: chunks have a file already, whose failed rows are labelled again.
        image_timeout: seconds for reading one image, and for detecting on it; 0 = no limit.
        image_root: the only folder that images are read of; empty = wherever they lie.
    """

    checkpoint: str
    predictor: PredictorSettings
    proposals: str = ""
    threads: int = 0
    workers_per_node: int = 1
    cpus: int = 0
    workers_per_gpu: int = 1
    group_size: int = 8
    readers: int = 16
    manifest: Manifest | None = None
    output: str = ""
    retry_failed: bool = False
    image_timeout: float = 0.0
    image_root: str = ""


class LoadPredictor(Protocol):
    """Signature of `maskrcnn_core.inference.predictor.load_predictor`."""

    def __call__(self, checkpoint: str, settings: PredictorSettings) -> Predicting:
        """Builds the detector."""
        ...


class LabelWorker:
    """Callable for `map_batches`: chunks of the manifest become label files; what returns are their counts.

    Args:
        load: builds the detector.
        settings: of the run.
        board: where groups of images are begun and done.
        reader: of the images; None = an `ImageReader`.
    """

    def __init__(
        self, load: LoadPredictor, settings: WorkerSettings, board: Board, reader: Reading | None = None
    ) -> None:
        self._settings = settings
        most_bytes = settings.predictor.max_pixels * _ENCODED_BYTES_PER_PIXEL + _ENCODED_BYTES_EXTRA
        self._proposes = settings.predictor.record == "proposals"
        self._stream = DetectorStream(
            partial(_load, load, settings), board, settings.image_timeout, proposes=self._proposes
        )
        self._schema = record_schema(self._stream.predictor.categories)
        self._proposals = open_proposals(settings.proposals, "proposals") if settings.proposals else None
        self._reads = ReadAhead(
            reader or ImageReader(most_bytes, settings.image_root),
            None if self._proposals is None else self._read_proposals,
            settings.readers,
            settings.image_timeout,
            _GROUPS_AHEAD * settings.group_size,
        )
        self._metrics = LabelMetrics()

    def __call__(self, chunks: pa.Table) -> pa.Table:
        """Label the chunks (part, start, stop) and write a file for each; returns its name and `LabelFile` for each.

        A mistake of the user comes back as a row as well: Ray Data would wrap its report around an exception's text.
        """
        some = [Chunk(**row) for row in chunks.to_pylist()]
        results = [pickle.dumps(self._file_or_mistake(chunk)) for chunk in some]
        return pa.table({"name": [chunk.name for chunk in some], "result": pa.array(results, pa.binary())})

    def _file_or_mistake(self, chunk: Chunk) -> LabelFile | UserError:
        try:
            return self.label_chunk(chunk)
        except UserError as error:
            return error

    def label_chunk(self, chunk: Chunk) -> LabelFile:
        """Label one chunk and write its file; a file that is already there stays, but for the rows to be tried again.

        Raises:
            StorageError: storage refuses many images in a row, or all of them.
            UserError: the detector fails on many images in a row.
        """
        uri, manifest = chunk.uri(self._settings.output), self._settings.manifest
        assert manifest is not None
        if self._settings.retry_failed:
            table = self._relabelled(read_rows(uri))
        elif storage.exists(uri):  # an earlier attempt has written it and was not heard of again
            return read_footer(uri)
        else:
            table = self.label(manifest.read(chunk.part, chunk.start, chunk.stop))
        if not storage.exists(run_folder.identity_uri(self._settings.output)):
            raise StorageError(
                f"output: the folder {self._settings.output!r} was deleted or moved while it was labelled; put it "
                "back, or choose another, and give the command again"
            )
        try:
            file = write_labels(table, uri)
        except StorageError:
            if self._settings.retry_failed or not storage.exists(uri):
                raise
            return read_footer(uri)  # another start has finished the run and cleared this one's unfinished file away
        self._metrics.chunk()
        return file

    def _relabelled(self, before: pa.Table) -> pa.Table:
        """The rows of a file, those that had failed labelled anew."""
        is_ok = pc.equal(before.column("status"), "ok")
        again = self.label(before.filter(pc.invert(is_ok)).select(["image_id", "uri"]))
        return pa.concat_tables([before.filter(is_ok), again.cast(before.schema)]).sort_by("image_id")

    def label(self, rows: pa.Table) -> pa.Table:
        """Label rows for the images of `rows` (image_id, uri), in order.

        Raises:
            StorageError, UserError: as `label_chunk`.
        """
        ids, uris = rows.column("image_id").to_pylist(), rows.column("uri").to_pylist()
        if not ids:
            return self._table(ids, uris, [])
        with self._stream.chunk(ids, self._settings.group_size) as chunk:
            with closing(self._reads.images(ids, uris)) as images:
                for image in images:
                    chunk.put(image)
            records = chunk.records()
        return self._table(ids, uris, records)

    def _table(self, ids: Sequence[int], uris: Sequence[str], records: Sequence[Record]) -> pa.Table:
        fingerprint = self._stream.predictor.fingerprint
        if self._proposes:
            proposals = [record for record in records if isinstance(record, ProposalRecord)]
            return proposals_to_table(ids, uris, proposals, fingerprint)
        detections = [record for record in records if isinstance(record, ImageRecord)]
        return records_to_table(ids, uris, detections, fingerprint, self._schema)

    def _read_proposals(self, image_id: int) -> ImageProposals | ImageError:
        assert self._proposals is not None
        try:
            return self._proposals.read(image_id, self._stream.predictor.max_proposals)
        except ImageError as error:
            return error


def _load(load: LoadPredictor, settings: WorkerSettings) -> Predicting:
    # Ray starts its workers with OMP_NUM_THREADS=1.
    torch.set_num_threads(settings.threads or max(1, physical_cores() // _workers_here(settings)))
    return load(settings.checkpoint, settings.predictor)


def _workers_here(settings: WorkerSettings) -> int:
    """Workers that share this machine, by what Ray knows of it now: machines of other shapes come and go."""
    node = own_node() if settings.cpus else None
    if node is None:
        return max(1, settings.workers_per_node)
    if settings.predictor.device != "cpu":
        return max(1, node.gpus * settings.workers_per_gpu)
    room = max(1, node.cpus // settings.cpus)
    return min(room, settings.workers_per_node or room)
