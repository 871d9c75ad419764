"""Images -> batches -> network -> records, one stage after the other or, beside a GPU, all at the same time.

    decoders        threads       encoded images to pixels
    prefetch        a thread      pixels to batches in page-locked memory
    start           the caller    hands a batch's work to the device, which computes when it comes to it
    finish          a thread      waits for that work, draws masks, encodes them, makes records

While the records of one batch are made, the device computes the next. Images may come without end: nothing is drained
between them, and records come back by batches, in whatever order these are done. Where no image is at hand (a pause),
all that is under way is finished.

A batch that fails, at whatever stage, is tried again image by image, so that only the culprit is lost. Whatever is
raised counts: what a library makes of a strange image has no one type, and a fault of the program shows in every image.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from maskrcnn_core.data.prefetch import close, prefetch
from maskrcnn_core.data.proposals import ImageProposals
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.preparation import (
    FailedImage,
    Preparation,
    PreparedBatch,
    PreparedImage,
    Request,
    reason_of,
)
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.records.proposals import ProposalRecord

_State = TypeVar("_State")
_Record = TypeVar("_Record", ImageRecord, ProposalRecord)

_Padded = tuple[list[PreparedImage], PreparedBatch | None] | FailedImage
_Keyed = list[tuple[int, _Record | ImageRecord]]
_Finished = Generator[_Keyed[_Record], None, None]

# Batches started whose records are not there yet: one that the device computes and one that is finished. More would
# hold memory and gain nothing.
_MOST_STARTED = 2


@dataclass(frozen=True)
class Steps(Generic[_State, _Record]):
    """What is done with a batch.

    Attributes:
        start: all that the device computes for it, without waiting. What it returns may not share memory with what it
            returns for a later batch, which is computed before this one is finished.
        finish: one record for each image of the batch. May run in another thread and, on a GPU, on another stream.
    """

    start: Callable[[PreparedBatch], _State]
    finish: Callable[[_State], list[_Record]]


class BatchPipeline:
    """Takes images through a `Preparation` and the steps of a detector.

    Args:
        preparation: makes the batches.
        device: of the steps.
        overlapped: prepare the next batch and finish the one before while the device computes; false = all in the
            caller's thread.
    """

    def __init__(self, preparation: Preparation, device: torch.device, *, overlapped: bool) -> None:
        self._preparation, self._device, self._overlapped = preparation, device, overlapped
        self._finisher: _Finisher | None = None
        self._last_alone = 0.0

    @property
    def idle_since(self) -> float | None:
        """When the last batch was finished, seconds of `time.monotonic`; None while one is under way."""
        return self._last_alone if self._finisher is None else self._finisher.idle_since

    def records(
        self,
        encoded: Sequence[bytes | Tensor | ImageError],
        proposals: Sequence[ImageProposals | ImageError | None],
        steps: Steps[_State, _Record],
    ) -> list[_Record | ImageRecord]:
        """What the steps make of the images, in order; an image that fails has an `ImageRecord` that says why."""
        requests = [Request(*one) for one in zip(range(len(encoded)), encoded, proposals, strict=True)]
        # With one image there is nothing to do beside it, and handing it from thread to thread takes a while.
        overlapped = self._overlapped and len(encoded) > 1
        records: dict[int, _Record | ImageRecord] = {}
        with closing(self._in_turn(requests, steps, overlapped=overlapped)) as finished:
            for batch in finished:
                records.update(batch)
        return [records[index] for index in range(len(encoded))]

    def stream(self, requests: Iterable[Request | None], steps: Steps[_State, _Record]) -> _Finished[_Record]:
        """The same for images that come one by one: their keys and records by batches, as these are done.

        Args:
            requests: None = a pause. Iterated in another thread where stages overlap; an iterator that waits for images
                yields None now and then, since that thread cannot end before.
            steps: of the detector.
        """
        return self._in_turn(requests, steps, overlapped=self._overlapped)

    def _in_turn(
        self, requests: Iterable[Request | None], steps: Steps[_State, _Record], *, overlapped: bool
    ) -> _Finished[_Record]:
        batches = self._padded(self._preparation.batches(requests))
        return self._overlapping(batches, steps) if overlapped else self._one_after_the_other(batches, steps)

    def _padded(self, groups: Iterator[list[PreparedImage] | FailedImage]) -> Iterator[_Padded]:
        """Each group, and its batch where there is memory for it."""
        try:
            for items in groups:
                if isinstance(items, FailedImage):
                    yield items
                    continue
                try:
                    batch = self._preparation.padded(items) if items else None
                except Exception:  # it comes again when its steps are taken
                    batch = None
                yield items, batch
        finally:
            close(groups)

    def _one_after_the_other(
        self,
        batches: Iterator[_Padded],
        steps: Steps[_State, _Record],
    ) -> _Finished[_Record]:
        for padded in batches:
            if isinstance(padded, FailedImage):
                yield _failed(padded)
            elif padded[0]:
                records = self._now(*padded, steps)
                self._last_alone = time.monotonic()
                yield _keyed(padded[0], records)

    def _overlapping(
        self,
        batches: Iterator[_Padded],
        steps: Steps[_State, _Record],
    ) -> _Finished[_Record]:
        if self._finisher is None:
            self._finisher = _Finisher(self._device)
        started: deque[tuple[list[PreparedImage], Future[list[_Record]]]] = deque()
        try:
            with closing(prefetch(batches, depth=1)) as ready:
                for padded in ready:
                    if isinstance(padded, FailedImage):
                        yield _failed(padded)
                        continue
                    items, batch = padded
                    while started and (len(started) == _MOST_STARTED or not items):  # without items: a pause
                        yield self._settled(*started.popleft(), steps)
                    if items:
                        started.append((items, self._started(items, batch, steps, self._finisher)))
                while started:
                    yield self._settled(*started.popleft(), steps)
        finally:
            wait([future for _, future in started])  # nothing goes on after the call

    def _started(
        self,
        items: list[PreparedImage],
        batch: PreparedBatch | None,
        steps: Steps[_State, _Record],
        finisher: "_Finisher",
    ) -> Future[list[_Record]]:
        """The records of a batch (None = not padded yet) to come; an error that an image can cause waits in it."""
        try:
            return finisher.submit(steps.finish, steps.start(batch or self._preparation.padded(items)))
        except Exception as error:
            never: Future[list[_Record]] = Future()
            never.set_exception(error)
            return never

    def _settled(
        self, items: list[PreparedImage], future: Future[list[_Record]], steps: Steps[_State, _Record]
    ) -> _Keyed[_Record]:
        try:
            return _keyed(items, future.result())
        except Exception as error:
            return _keyed(items, self._one_by_one(items, error, steps))

    def _now(
        self, items: list[PreparedImage], batch: PreparedBatch | None, steps: Steps[_State, _Record]
    ) -> Sequence[_Record | ImageRecord]:
        """The records of a batch (None = not padded yet)."""
        try:
            return steps.finish(steps.start(batch or self._preparation.padded(items)))
        except Exception as error:
            return self._one_by_one(items, error, steps)

    def _one_by_one(
        self, items: list[PreparedImage], error: Exception, steps: Steps[_State, _Record]
    ) -> Sequence[_Record | ImageRecord]:
        """The records of a batch that failed."""
        if len(items) > 1:
            return [record for item in items for record in self._now([item], None, steps)]
        height, width = items[0].original_size
        return [ImageRecord("failed", reason_of(error), width, height)]


def _keyed(items: list[PreparedImage], records: Sequence[_Record | ImageRecord]) -> _Keyed[_Record]:
    return list(zip((item.key for item in items), records, strict=True))


def _failed(image: FailedImage) -> list[tuple[int, Any]]:
    return [(image.key, ImageRecord(image.error.status, " ".join(str(image.error).split()), None, None))]


class _Finisher:
    """One thread that finishes batches in the order in which they were started; it ends with this object.

    On a GPU it has a stream of its own, so that its work does not queue up behind the batch after, and goes first where
    both could: it is little, and the host waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._thread = ThreadPoolExecutor(1, "finish")
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self._newest: Future[Any] | None = None
        self._ended = 0.0

    @property
    def idle_since(self) -> float | None:
        """See `BatchPipeline`."""
        return self._ended if self._newest is None or self._newest.done() else None

    def submit(self, finish: Callable[[_State], list[_Record]], state: _State) -> Future[list[_Record]]:
        """`finish` of a state whose computation lies on the caller's stream up to here."""
        if self._stream is None:
            future = self._thread.submit(self._finished, finish, state)
        else:
            computed = torch.cuda.Event()
            computed.record(torch.cuda.current_stream(self._device))
            future = self._thread.submit(self._finished, partial(_finish_on, self._stream, computed, finish), state)
        self._newest = future
        return future

    def _finished(self, finish: Callable[[_State], list[_Record]], state: _State) -> list[_Record]:
        try:
            return finish(state)
        finally:
            self._ended = time.monotonic()


def _finish_on(
    stream: torch.cuda.Stream,
    computed: torch.cuda.Event,
    finish: Callable[[_State], list[_Record]],
    state: _State,
) -> list[_Record]:
    # Also makes the stream's device this thread's.
    with torch.cuda.stream(stream):
        stream.wait_event(computed)
        try:
            return finish(state)
        finally:
            # The state's memory belongs to the caller's stream, which may use it again once the state is dropped: not
            # before all that reads it here is done.
            stream.synchronize()
