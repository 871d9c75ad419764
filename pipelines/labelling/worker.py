"""One detector process of a labelling run: chunks of the manifest in, label files out, one row for each image.

A worker is called from two threads (`CONCURRENT_CALLS`): while one call's images are in the network, the other call
reads its files and builds its rows. The network itself is only ever used by one thread.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import torch

from maskrcnn_core.data.proposals import ImageProposals
from maskrcnn_core.errors import ImageError, StorageError, UserError
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table
from maskrcnn_core.records.proposals import ProposalRecord, failed_proposals, proposals_to_table
from pipelines import storage
from pipelines.cluster.cpus import physical_cores
from pipelines.images.reading import ImageReader
from pipelines.images.reading_threads import Call, ReadingThreads
from pipelines.labelling.device_faults import MOST_FAULTS, Standing, this_device
from pipelines.labelling.metrics import LabelMetrics
from pipelines.labelling.progress import Board, Work
from pipelines.labelling.time_limits import GroupTimes
from pipelines.labelling.worker_settings import LoadPredictor, Predicting, WorkerSettings
from pipelines.labels import run_folder
from pipelines.labels.chunks import Chunk, LabelFile, read_footer, read_rows, write_labels
from pipelines.labels.proposals import open_proposals

Record: TypeAlias = ImageRecord | ProposalRecord
_Proposals: TypeAlias = Sequence[ImageProposals | ImageError] | None

# An image that ended this many processes in a row is given up.
_MOST_CRASHES = 2

# No image that can be decoded within the pixel limit needs more encoded bytes than this for each pixel
# (16-bit RGBA without compression); the constant leaves room for metadata.
_ENCODED_BYTES_PER_PIXEL = 8
_ENCODED_BYTES_EXTRA = 64 << 20

_EXIT_TIMED_OUT = 124
_REPORT_SECONDS = 30.0

# Single images fail for reasons of their own; so many in a row mean a broken detector (as a lost CUDA context is).
_MOST_FAILED_IN_A_ROW = 16


class BrokenDetectorError(Exception):
    """The detector of this process works on nothing any more."""


def too_many_given_up(standing: Standing) -> UserError:
    """That the run ends, and for the fault of which devices."""
    return UserError(
        f"the detector works on too few devices; given up after {MOST_FAULTS} processes each: {standing.given_up}; "
        "mend or replace these machines, and give the same command again: it goes on where it stopped"
    )


class LabelWorker:
    """Chunks of the manifest become label files; what returns are their counts.

    Raises:
        BrokenDetectorError: the device fails while the detector is loaded; the process is to end.
        UserError: the checkpoint cannot be used, or too many devices have failed.
    """

    def __init__(self, load: LoadPredictor, settings: WorkerSettings, board: Board) -> None:
        self._board = board
        self._settings = settings
        self._group_size = settings.group_size
        most_bytes = settings.predictor.max_pixels * _ENCODED_BYTES_PER_PIXEL + _ENCODED_BYTES_EXTRA
        self._reader = ImageReader(most_bytes, settings.image_root)
        self._device = this_device()
        self._failed_in_a_row = 0
        self._times = GroupTimes(settings.image_timeout)
        self._idle_since: float | None = None
        self._readers = ReadingThreads(settings.readers, settings.image_timeout)
        # OpenMP keeps a team of threads for every thread that computes: one thread, one team.
        self._model_thread = ThreadPoolExecutor(1, "detect")
        self._predictor = self._loaded(load)
        self._schema = record_schema(self._predictor.categories)
        self._proposes = settings.predictor.record == "proposals"
        self._proposals = open_proposals(settings.proposals, "proposals") if settings.proposals else None
        self._metrics = LabelMetrics()

    def _loaded(self, load: LoadPredictor) -> Predicting:
        try:
            return self._model_thread.submit(_load, load, self._settings).result()
        except UserError:
            raise
        except Exception as error:
            if (
                self._settings.predictor.device == "cpu"
            ):  # then it is no device that is lost, but a fault of the program
                raise
            reason = f"loading failed with {type(error).__name__}: {' '.join(str(error).split())}"
            raise self._broken(reason) from error

    def use(self, settings: WorkerSettings) -> None:
        """Settings from now on: other threads, and of what belongs to the run rather than to the detector."""
        self._settings = settings

    def label_chunk(self, chunk: Chunk) -> LabelFile:
        """Label one chunk and write its file; a file that is already there stays, but for the rows to be tried again.

        Raises:
            StorageError: storage refuses many images in a row, or all of them.
            BrokenDetectorError: the detector fails on many images in a row; the process is to end.
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
        """Label rows for the images of `rows` (image_id, uri), in order."""
        ids, uris = rows.column("image_id").to_pylist(), rows.column("uri").to_pylist()
        groups = [slice(start, start + self._group_size) for start in range(0, len(ids), self._group_size)]
        records: list[Record] = []
        # The next group is read while this one is in the network.
        ahead = self._start_reading(ids, uris, groups[0]) if groups else None
        for index, group in enumerate(groups):
            assert ahead is not None
            encoded = [self._read_image(image, uri) for image, uri in zip(ahead[0], uris[group], strict=True)]
            proposals = ahead[1]
            if index + 1 < len(groups):
                ahead = self._start_reading(ids, uris, groups[index + 1])
            given = None if proposals is None else [self._proposals_in_time(call) for call in proposals]
            records += self._model_thread.submit(self._detect, ids[group], encoded, given).result()
        return self._table(ids, uris, records)

    def _start_reading(
        self, ids: Sequence[int], uris: Sequence[str], group: slice
    ) -> tuple[list[Call[bytes | ImageError]], list[Call[ImageProposals | ImageError]] | None]:
        images = [self._readers.submit(partial(self._reader.read, uri)) for uri in uris[group]]
        if self._proposals is None:
            return images, None
        return images, [self._readers.submit(partial(self._read_proposals, image_id)) for image_id in ids[group]]

    def _read_image(self, image: Call[bytes | ImageError], uri: str) -> bytes | ImageError:
        try:
            return image.result()
        except TimeoutError:
            return self._reader.late(uri, self._settings.image_timeout)

    def _proposals_in_time(self, call: Call[ImageProposals | ImageError]) -> ImageProposals | ImageError:
        try:
            return call.result()
        except TimeoutError as error:
            return ImageError("failed", f"reading its proposals {error} (label.image_timeout)")

    def _table(self, ids: Sequence[int], uris: Sequence[str], records: Sequence[Record]) -> pa.Table:
        fingerprint = self._predictor.fingerprint
        if self._proposes:
            proposals = [record for record in records if isinstance(record, ProposalRecord)]
            return proposals_to_table(ids, uris, proposals, fingerprint)
        detections = [record for record in records if isinstance(record, ImageRecord)]
        return records_to_table(ids, uris, detections, fingerprint, self._schema)

    def _read_proposals(self, image_id: int) -> ImageProposals | ImageError:
        assert self._proposals is not None
        try:
            return self._proposals.read(image_id, self._predictor.max_proposals)
        except ImageError as error:
            return error

    def _detect(self, ids: Sequence[int], encoded: Sequence[bytes | ImageError], proposals: _Proposals) -> list[Record]:
        started = time.monotonic()
        if self._settings.threads not in (0, torch.get_num_threads()):
            torch.set_num_threads(self._settings.threads)
        waited = 0.0 if self._idle_since is None else started - self._idle_since
        key = ids[0]
        if self._board.begin(key) > 1:
            records = self._one_by_one(ids, encoded, proposals)
        else:
            with self._time_limit(key, len(encoded)):
                records = self._predict(encoded, proposals)
        self._require_working(key, records)
        self._idle_since = time.monotonic()
        self._report(key, records, self._idle_since - started, waited)
        return records

    def _report(self, key: int, records: Sequence[Record], busy: float, waited: float) -> None:
        statuses = Counter(record.status for record in records)
        detections = sum(_num_detections(record) for record in records)
        failed = len(records) - statuses["ok"]
        self._board.done(key, Work(len(records), detections, failed, busy, waited, self._device))
        self._metrics.images(statuses, detections, busy, waited)

    def _predict(self, encoded: Sequence[bytes | ImageError], proposals: _Proposals) -> list[Record]:
        if self._proposes:
            return [*self._predictor.propose(encoded)]
        return [*self._predictor.predict(encoded, *([] if proposals is None else [proposals]))]

    @contextmanager
    def _time_limit(self, key: int, images: int) -> Iterator[None]:
        """Ends the process if the block takes too long: nothing else stops code that hangs in a library. The board
        then shows which images it was busy with, as after any other crash."""
        started, limit = time.monotonic(), self._times.limit(images)
        timer = threading.Timer(limit or 0.0, self._end_hanging, (key, limit))
        timer.daemon = True
        if limit is not None:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()
        self._times.took(images, time.monotonic() - started)

    def _end_hanging(self, key: int, limit: float) -> None:
        last_resort = threading.Timer(_REPORT_SECONDS, os._exit, (_EXIT_TIMED_OUT,))
        last_resort.daemon = True
        last_resort.start()
        self._board.fault(self._device, key, f"it did not return within {limit:.0f} s (label.image_timeout)")
        os._exit(_EXIT_TIMED_OUT)

    def _one_by_one(
        self, ids: Sequence[int], encoded: Sequence[bytes | ImageError], proposals: _Proposals
    ) -> list[Record]:
        """After a group ended a process, which no predictor survives to tell the culprit: its images alone, so that
        only those that end one again get `failed`."""
        records: list[Record] = []
        for index, (image_id, image) in enumerate(zip(ids, encoded, strict=True)):
            key = -1 - image_id  # a name of its own beside the group's
            crashes, works_on = self._board.begin(key) - 1, ""
            if crashes >= _MOST_CRASHES:
                records.append(self._given_up(crashes))
            else:
                works_on = self._device
                with self._time_limit(key, 1):
                    records += self._predict([image], None if proposals is None else [proposals[index]])
            self._board.done(key, Work(device=works_on))
        return records

    def _given_up(self, crashes: int) -> Record:
        limit = self._settings.image_timeout
        slow = f" or took longer than {limit:g} s (label.image_timeout)" if limit else ""
        error = f"ended the detector's process {crashes} times (crash, out of memory){slow}"
        return failed_proposals("failed", error) if self._proposes else ImageRecord("failed", error, None, None)

    def _require_working(self, key: int, records: Sequence[Record]) -> None:
        """Ends the process where the fault is not in the images, before all of them become failed rows."""
        for record in records:
            if record.status == "ok":
                self._failed_in_a_row = 0
            self._failed_in_a_row += record.status == "failed"
        if self._failed_in_a_row < _MOST_FAILED_IN_A_ROW:
            return
        last = [record.error for record in records if record.status == "failed"][-1]
        self._board.done(key, Work())  # the images are not to blame for the end of this process
        raise self._broken(f"it failed on {self._failed_in_a_row} images in a row, the last time with: {last}")

    def _broken(self, reason: str) -> Exception:
        """What to raise where the detector works on nothing."""
        standing = self._board.fault(self._device, os.getpid(), reason)
        return too_many_given_up(standing) if standing.ends_run else BrokenDetectorError(reason)


def _num_detections(record: Record) -> int:
    return len(record.scores if isinstance(record, ProposalRecord) else record.detections)


def _load(load: LoadPredictor, settings: WorkerSettings) -> Predicting:
    # Ray starts its workers with OMP_NUM_THREADS=1.
    torch.set_num_threads(settings.threads or max(1, physical_cores() // settings.workers_per_node))
    return load(settings.checkpoint, settings.predictor)
