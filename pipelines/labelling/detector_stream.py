"""The thread of a worker that computes: the images of all its chunks as one stream through the detector.

    threads of chunks       put images in as they are read, and wait for the records of their own
    the detector's thread   takes images, hands them to the detector, gives records back

Nothing is drained at the end of a group or a chunk. Groups are what the board knows: one that was begun before and not
finished has ended a process, or was under way when another did. Its images go alone, with nothing else under way, so
that only those that end a process again are given up.

An image on which the detector fails has its record only once the detector has worked on another one after it (where
none comes, on one of ours): a broken device leaves no rows that say that images are at fault.
"""

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cache
from io import BytesIO
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from maskrcnn_core.config.model import Category
from maskrcnn_core.data.proposals import ImageProposals
from maskrcnn_core.inference.preparation import Request
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.records.proposals import ProposalRecord, failed_proposals
from pipelines.labelling.busy_time import BusyTime
from pipelines.labelling.chunk_in_stream import Asked, ChunkInStream, Group, Record
from pipelines.labelling.device_board import BoardOfDevice
from pipelines.labelling.metrics import LabelMetrics
from pipelines.labelling.time_limits import BatchTimes, Watch

# An image that ended this many processes in a row is given up.
_MOST_CRASHES = 2

# Single images fail for reasons of their own; so many in a row mean a broken detector (as a lost CUDA context is).
_MOST_FAILED_IN_A_ROW = 16

_TEST_SIDE = 32

# Without an image for so long, what waits for others of its shape is computed: some batches' time on a GPU.
_PAUSE_SECONDS = 0.05


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

    @property
    def idle_since(self) -> float | None:
        """When the last batch was finished, seconds of `time.monotonic`; None while one is under way."""
        ...

    def predict_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ImageRecord]]]:
        """Records by keys, a batch at a time, also of images that fail; None among the requests is a pause."""
        ...

    def propose_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ProposalRecord]]]:
        """As `predict_each`: the RPN's proposals."""
        ...


class DetectorStream:
    """A detector and its thread.

    Args:
        load: makes the detector; called in the thread that will use it.
        board: where groups are begun and done.
        image_timeout: as `BatchTimes` takes it.
        proposes: ask for proposals instead of detections.
    """

    def __init__(
        self, load: Callable[[], Predicting], board: BoardOfDevice, image_timeout: float, *, proposes: bool
    ) -> None:
        # OpenMP keeps a team of threads for every thread that computes: one thread, one team.
        self._thread = ThreadPoolExecutor(1, "detect")
        self.predictor = self._thread.submit(load).result()
        self._board, self._proposes, self._image_timeout = board, proposes, image_timeout
        self._watch = Watch(BatchTimes(image_timeout), lambda: bool(self._under_way), self._end_hanging)
        self._metrics = LabelMetrics()
        self._queue: SimpleQueue[Asked] = SimpleQueue()
        self._lock = threading.Lock()
        self._chunks: set[ChunkInStream] = set()
        self._is_running = False
        self._under_way: dict[int, Asked | None] = {}  # None = the image of ours
        self._held: list[tuple[Asked, Record]] = []
        self._threads = 0
        self._number = 0
        self._suspect: Group | None = None
        self._time = BusyTime()

    def compute_with(self, threads: int) -> None:
        """Use so many threads from the next batch on; 0 = as many as now."""
        self._threads = threads

    @contextmanager
    def chunk(self, ids: Sequence[int], group_size: int) -> Iterator[ChunkInStream]:
        """A chunk of one or more images, whose records come as long as the block lasts."""
        chunk = ChunkInStream(ids, group_size, self._queue.put)
        with self._lock:
            self._chunks.add(chunk)
            if not self._is_running:
                self._is_running = True
                self._thread.submit(self._run)
        try:
            yield chunk
        finally:
            chunk.is_closed = True
            with self._lock:
                self._chunks.discard(chunk)
            for group in chunk.groups:
                if group.attempts and not group.is_finished:
                    self._board.forget(group.key)

    # ---- in the detector's thread; `_requests` may be called in another one that the detector has

    def _run(self) -> None:
        """As long as there are chunks."""
        self._time.start()
        try:
            while (suspect := self._stream()) is not None:
                self._alone(suspect)
        except BaseException as error:
            self._end(error)
        self._time.stop()

    def _stream(self) -> Group | None:
        """Images up to the next group that has to go alone, which is returned; None = there are no more chunks."""
        with self._watch, closing(self._asked_of_detector(self._requests())) as batches:
            for batch in batches:
                self._deliver(batch)
        suspect, self._suspect = self._suspect, None
        return suspect

    def _asked_of_detector(
        self, requests: Iterable[Request | None]
    ) -> Generator[list[tuple[int, ImageRecord]]] | Generator[list[tuple[int, ProposalRecord]]]:
        return self.predictor.propose_each(requests) if self._proposes else self.predictor.predict_each(requests)

    def _requests(self) -> Iterator[Request | None]:
        while True:
            with self._time.waiting(lambda: self.predictor.idle_since):
                asked = self._next_asked()
            if asked is None:
                with self._lock:
                    if not self._chunks:
                        self._is_running = False
                        return
                yield None
                if self._held and not self._under_way:
                    yield self._test_request()
                continue
            asked.image.ticket.leave()
            if asked.chunk.is_closed or not self._goes_on(asked):
                if self._suspect is not None:
                    return
                continue
            yield self._request(asked)

    def _next_asked(self) -> Asked | None:
        try:
            return self._queue.get(timeout=_PAUSE_SECONDS)
        except Empty:
            return None

    def _goes_on(self, asked: Asked) -> bool:
        """Whether an image goes with the others; a group that does not is set apart until it is complete."""
        group = asked.group
        if not group.attempts:
            group.attempts = self._board.begin(group.key)
            self._watch.expect(group.size if group.attempts == 1 else 0)
        if group.attempts == 1:
            return True
        group.alone.append(asked)
        if len(group.alone) == group.size:
            self._suspect = group
        return False

    def _request(self, asked: Asked) -> Request:
        return Request(self._numbered(asked), asked.image.content, asked.image.proposals)

    def _test_request(self) -> Request:
        """An image of ours, with proposals where those of the run have some."""
        self._watch.expect(1)
        size = (_TEST_SIDE, _TEST_SIDE)
        given = self._held[-1][0].image.proposals
        whole = ImageProposals(torch.tensor([[0.0, 0.0, *map(float, size)]]), torch.ones(1), size)
        return Request(self._numbered(None), _test_image(), None if given is None else whole)

    def _numbered(self, asked: Asked | None) -> int:
        self._number += 1
        if not self._under_way:
            self._watch.begins()
        self._under_way[self._number] = asked
        return self._number

    def _deliver(self, batch: Sequence[tuple[int, Record]]) -> None:
        if self._threads not in (0, torch.get_num_threads()):
            torch.set_num_threads(self._threads)
        for number, record in batch:
            self._settle(self._under_way.pop(number), record)
        self._watch.came(len(batch))

    def _settle(self, asked: Asked | None, record: Record) -> None:
        """A record has come, of an image or (None) of the one of ours."""
        failed = record.status == "failed"
        if asked is not None and failed:
            self._held.append((asked, record))
        if failed and (asked is None or len(self._held) >= _MOST_FAILED_IN_A_ROW):
            raise self._broken(record)
        released: list[tuple[Asked, Record]] = []
        if record.status == "ok":  # others, as one that is no image, say nothing of the detector
            released, self._held = self._held, []
        for one in released:
            self._give(*one)
        if asked is not None and not failed:
            self._give(asked, record)

    def _broken(self, record: Record) -> Exception:
        """What to raise where the detector works on nothing; the images are not to blame."""
        with self._lock:
            for group in (group for chunk in self._chunks for group in chunk.groups):
                if group.attempts and not group.is_finished:
                    self._board.forget(group.key)
        failed = f"{len(self._held)} images in a row" if len(self._held) > 1 else "an image"
        return self._board.broken(f"it failed on {failed}, the last time with: {record.error}")

    def _end_hanging(self) -> None:
        # A copy: this is the thread that looks on, and others add to it.
        asked = next((asked for asked in list(self._under_way.values()) if asked is not None), None)
        alone = asked is not None and asked.group.attempts > 1
        self._board.end_hanging(0 if asked is None else -1 - asked.image_id if alone else asked.group.key)

    def _give(self, asked: Asked, record: Record) -> None:
        group = asked.group
        group.records.append(record)
        if group.is_finished:
            self._report(group)
        asked.chunk.take(asked.place, record)

    def _alone(self, group: Group) -> None:
        """The images of a group one by one, with nothing else under way."""
        for asked in group.alone:
            key = -1 - asked.image_id  # a name of its own beside the group's
            crashes = self._board.begin(key) - 1
            if crashes >= _MOST_CRASHES:
                self._settle(asked, self._given_up(crashes))
            else:
                self._watch.expect(1)
                request = self._request(asked)
                with self._watch, closing(self._asked_of_detector([request])) as batches:
                    for batch in batches:
                        self._deliver(batch)
            self._board.done_alone(key, works=not self._held)

    def _given_up(self, crashes: int) -> Record:
        limit = self._image_timeout
        slow = f" or took longer than {limit:g} s (label.image_timeout)" if limit else ""
        error = f"ended the detector's process {crashes} times (crash, out of memory){slow}"
        return failed_proposals("failed", error) if self._proposes else ImageRecord("failed", error, None, None)

    def _report(self, group: Group) -> None:
        statuses = Counter(record.status for record in group.records)
        detections = sum(_num_detections(record) for record in group.records)
        busy, waited = self._time.since_last_report()
        self._board.done(group.key, group.size, detections, group.size - statuses["ok"], (busy, waited))
        self._metrics.images(statuses, detections, busy, waited)

    def _end(self, error: BaseException) -> None:
        """Every chunk ends with the error; the next one starts anew."""
        with self._lock:
            for chunk in self._chunks:
                chunk.fail(error)
            while not self._queue.empty():
                self._queue.get().image.ticket.leave()
            self._under_way.clear()
            self._held.clear()
            self._watch.forget()
            self._suspect = None
            self._is_running = False


def _num_detections(record: Record) -> int:
    return len(record.scores if isinstance(record, ProposalRecord) else record.detections)


@cache
def _test_image() -> bytes:
    """A picture on which every detector that works does."""
    shades = np.arange(_TEST_SIDE * _TEST_SIDE, dtype=np.uint8).reshape(_TEST_SIDE, _TEST_SIDE)
    content = BytesIO()
    Image.fromarray(shades).convert("RGB").save(content, "PNG")
    return content.getvalue()
