"""One detector process of a labelling run: chunks of the manifest in, label files out, one row for each image.

A worker is called from two threads (`CONCURRENT_CALLS`), whose images are one stream through the detector: while one
call builds its rows and writes them, the images of the other go on.
"""

from collections.abc import Sequence
from contextlib import closing
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import torch

from maskrcnn_core.data.proposals import ImageProposals
from maskrcnn_core.errors import ImageError, StorageError, UserError
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table
from maskrcnn_core.records.proposals import ProposalRecord, proposals_to_table
from pipelines import storage
from pipelines.cluster.cpus import physical_cores
from pipelines.images.reading import ImageReader
from pipelines.labelling.chunk_in_stream import Record
from pipelines.labelling.detector_stream import DetectorStream, Predicting
from pipelines.labelling.device_board import BoardOfDevice
from pipelines.labelling.metrics import LabelMetrics
from pipelines.labelling.progress import Board
from pipelines.labelling.read_ahead import ReadAhead, Reading
from pipelines.labelling.worker_settings import LoadPredictor, WorkerSettings
from pipelines.labels import run_folder
from pipelines.labels.chunks import Chunk, LabelFile, read_footer, read_rows, write_labels
from pipelines.labels.proposals import open_proposals

# Images that are read before the detector takes them: what it has for the time that a slow read takes.
_GROUPS_AHEAD = 2

# No image that can be decoded within the pixel limit needs more encoded bytes than this for each pixel
# (16-bit RGBA without compression); the constant leaves room for metadata.
_ENCODED_BYTES_PER_PIXEL = 8
_ENCODED_BYTES_EXTRA = 64 << 20


class LabelWorker:
    """Chunks of the manifest become label files; what returns are their counts.

    Args:
        load: builds the detector.
        settings: of the run.
        board: where groups of images are begun and done.
        reader: of the images; None = an `ImageReader`.

    Raises:
        BrokenDetectorError: the device fails while the detector is loaded; the process is to end.
        UserError: the checkpoint cannot be used, or too many devices have failed.
    """

    def __init__(
        self, load: LoadPredictor, settings: WorkerSettings, board: Board, reader: Reading | None = None
    ) -> None:
        self._settings = settings
        most_bytes = settings.predictor.max_pixels * _ENCODED_BYTES_PER_PIXEL + _ENCODED_BYTES_EXTRA
        self._proposes = settings.predictor.record == "proposals"
        self._stream = _opened(load, settings, BoardOfDevice(board))
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

    @property
    def fingerprint(self) -> str:
        """Of the detector, as in the column `model` of its rows."""
        return self._stream.predictor.fingerprint

    def use(self, settings: WorkerSettings) -> None:
        """Settings from now on: other threads, more readers, and what belongs to the run and not to the detector."""
        self._settings = settings
        self._stream.compute_with(settings.threads)
        self._reads.grow(settings.readers)

    def label_chunk(self, chunk: Chunk) -> LabelFile:
        """Label one chunk and write its file; a file that is already there stays, but for the rows to be tried again.

        Raises:
            StorageError: storage refuses many images in a row, or all of them.
            BrokenDetectorError: the detector works on nothing any more; the process is to end.
            UserError: the same, and so many devices have failed before it that the run ends.
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
            StorageError, BrokenDetectorError, UserError: as `label_chunk`.
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
        if self._proposes:
            proposals = [record for record in records if isinstance(record, ProposalRecord)]
            return proposals_to_table(ids, uris, proposals, self.fingerprint)
        detections = [record for record in records if isinstance(record, ImageRecord)]
        return records_to_table(ids, uris, detections, self.fingerprint, self._schema)

    def _read_proposals(self, image_id: int) -> ImageProposals | ImageError:
        assert self._proposals is not None
        try:
            return self._proposals.read(image_id, self._stream.predictor.max_proposals)
        except ImageError as error:
            return error


def _opened(load: LoadPredictor, settings: WorkerSettings, board: BoardOfDevice) -> DetectorStream:
    proposes = settings.predictor.record == "proposals"
    try:
        return DetectorStream(partial(_load, load, settings), board, settings.image_timeout, proposes=proposes)
    except UserError:
        raise
    except Exception as error:
        if settings.predictor.device == "cpu":  # no device is lost: it is a fault of the program
            raise
        raise board.broken(f"loading failed with {type(error).__name__}: {' '.join(str(error).split())}") from error


def _load(load: LoadPredictor, settings: WorkerSettings) -> Predicting:
    # Ray starts its workers with OMP_NUM_THREADS=1.
    torch.set_num_threads(settings.threads or max(1, physical_cores() // _workers_here(settings)))
    return load(settings.checkpoint, settings.predictor)


def _workers_here(settings: WorkerSettings) -> int:
    """Workers that share this machine, by what Ray knows of it now: machines of other shapes come and go."""
    if not settings.cpus:
        return max(1, settings.workers_per_node)
    from pipelines.cluster.connection import own_node

    node = own_node()
    if node is None:
        return max(1, settings.workers_per_node)
    if settings.predictor.device != "cpu":
        return max(1, node.gpus * settings.workers_per_gpu)
    room = max(1, node.cpus // settings.cpus)
    return min(room, settings.workers_per_node or room)
