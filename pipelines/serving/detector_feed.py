"""A detector in a thread of its own, and requests as one stream through it: what labelling does, for whoever asks.

Images are put in as they come and go through `Predictor.predict_each`, which batches them by shape up to its budget of
pixels. The stream never ends; where no image is at hand, a pause lets the detector compute what it has. An image waits
for others only while the detector is busy anyway.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol

from torch import Tensor

from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.preparation import Request
from maskrcnn_core.records.labels import ImageRecord

# How often an idle stream looks whether it is to end; the stages around it cannot end while it waits.
_IDLE_SECONDS = 0.05

# A rare shape waits for at most so many others.
_MOST_BETWEEN_PAUSES = 32

# Single images fail for reasons of their own; so many in a row mean a broken detector.
_MOST_FAILED_IN_A_ROW = 16


class Predicting(Protocol):
    """The part of `maskrcnn_core.inference.predictor.Predictor` that answers requests."""

    config: ModelConfig

    @property
    def fingerprint(self) -> str:
        """Of weights and settings."""
        ...

    @property
    def categories(self) -> tuple[Category, ...]:
        """In label order."""
        ...

    def predict_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ImageRecord]]]:
        """Records by keys, a batch at a time, also of images that fail; None among the requests is a pause."""
        ...


@dataclass(frozen=True)
class Detected:
    """What became of one image.

    Attributes:
        record: of the detector.
        model: fingerprint of what made it.
        decode_ms: spent on its pixels; 0 where it could not be decoded.
        queue_ms: from its arrival to the detector, without decoding.
        model_ms: in the detector, with others of its batch.
        batch: images that the detector worked on together with it, itself included.
    """

    record: ImageRecord
    model: str
    decode_ms: float
    queue_ms: float
    model_ms: float
    batch: int


class DetectorLost(Exception):
    """The detector works on nothing any more."""


@dataclass
class _Asked:
    content: Tensor | ImageError
    decode_seconds: float
    arrived: float
    answer: "Future[Detected]" = field(default_factory=Future)
    begun: float = 0.0


class DetectorFeed:
    """A detector and its thread.

    Args:
        load: makes the detector; called in the thread that will use it.
        wait: seconds that an image waits for others while the detector is busy.

    Attributes:
        predictor: the detector.
    """

    def __init__(self, load: Callable[[], Predicting], wait: float) -> None:
        self._load, self._wait = load, wait
        self._queue: SimpleQueue[_Asked] = SimpleQueue()
        self._under_way: dict[int, _Asked] = {}
        self._number = 0
        self._failed_in_a_row = 0
        self._is_closed = False
        self._lock = threading.Lock()
        self.predictor: Predicting
        self._loaded: Future[None] = Future()
        # OpenMP keeps a team of threads for every thread that computes: one thread, one team.
        self._thread = threading.Thread(target=self._run, name="detect", daemon=True)
        self._thread.start()
        self._loaded.result()

    def ask(self, content: Tensor | ImageError, *, arrived: float, decode_seconds: float) -> "Future[Detected]":
        """What the detector finds in a decoded image; an error in place of one becomes its record.

        Args:
            content: [3, H, W] uint8 RGB.
            arrived: when it was asked for, seconds of `time.monotonic`.
            decode_seconds: that went into it meanwhile.

        Returns:
            Its answer to come, which raises `DetectorLost` where the detector breaks. Cancelled before its turn, the
            image is never looked at.
        """
        asked = _Asked(content, decode_seconds, arrived)
        with self._lock:
            if self._is_closed:
                raise DetectorLost("the detector is being replaced")
            self._queue.put(asked)
        return asked.answer

    def is_well(self, patience: float) -> bool:
        """Whether it computes: its thread lives, no image takes longer than `patience` seconds, not all fail."""
        oldest = min((asked.begun for asked in list(self._under_way.values())), default=None)
        hangs = oldest is not None and time.monotonic() - oldest > patience
        return self._thread.is_alive() and not hangs and self._failed_in_a_row < _MOST_FAILED_IN_A_ROW

    def close(self) -> None:
        """Answers what has been asked, and ends."""
        with self._lock:
            self._is_closed = True
        self._thread.join()

    # ---- in the detector's thread; `_requests` may be iterated in another one that the detector has

    def _run(self) -> None:
        try:
            self.predictor = self._load()
        except BaseException as error:
            self._loaded.set_exception(error)
            return
        self._loaded.set_result(None)
        while not (self._is_closed and self._queue.empty()):
            try:
                with closing(self.predictor.predict_each(self._requests())) as batches:
                    for batch in batches:
                        self._deliver(batch)
            except Exception as error:  # of the stream as a whole: an image's own is its record
                self._give_up(error)

    def _requests(self) -> Iterator[Request | None]:
        """Until the end: images, and a pause wherever what is there had better be computed."""
        since_pause, ends = 0, 0.0
        while True:
            limit = _IDLE_SECONDS if since_pause == 0 else ends - time.monotonic()
            asked = None if since_pause >= _MOST_BETWEEN_PAUSES else self._next(limit)
            if asked is None:
                if self._is_closed and self._queue.empty():
                    return
                since_pause = 0
                yield None
                continue
            if not asked.answer.set_running_or_notify_cancel():
                continue
            asked.begun = time.monotonic()
            if since_pause == 0:
                ends = asked.begun + (self._wait if self._under_way else 0.0)
            since_pause += 1
            self._number += 1
            self._under_way[self._number] = asked
            yield Request(self._number, asked.content)

    def _next(self, limit: float) -> _Asked | None:
        try:
            return self._queue.get(timeout=limit) if limit > 0 else self._queue.get_nowait()
        except Empty:
            return None

    def _deliver(self, batch: list[tuple[int, ImageRecord]]) -> None:
        now = time.monotonic()
        for number, record in batch:
            if record.status == "failed":
                self._failed_in_a_row += 1
            elif record.status == "ok":
                self._failed_in_a_row = 0
            asked = self._under_way.pop(number)
            waited = asked.begun - asked.arrived - asked.decode_seconds
            asked.answer.set_result(
                Detected(
                    record=record,
                    model=self.predictor.fingerprint,
                    decode_ms=1000 * asked.decode_seconds,
                    queue_ms=1000 * max(0.0, waited),
                    model_ms=1000 * (now - asked.begun),
                    batch=len(batch),
                )
            )

    def _give_up(self, error: Exception) -> None:
        self._failed_in_a_row += 1
        lost, self._under_way = self._under_way, {}
        for asked in lost.values():
            asked.answer.set_exception(DetectorLost(f"{type(error).__name__}: {' '.join(str(error).split())}"))
