"""Images -> batches -> network -> records, one stage after the other or, beside a GPU, all at the same time.

    decoders        threads       encoded images to pixels
    prefetch        a thread      pixels to batches in page-locked memory
    start           the caller    hands a batch's work to the device, which computes when it comes to it
    finish          a thread      waits for that work, draws masks, encodes them, makes records

While the records of one batch are made, the device computes the next. A batch that fails, at whatever stage, is tried
again image by image, so that only the culprit is lost. Whatever is raised counts: what a library makes of a strange
image has no one type, and a fault of the program shows in every image.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from maskrcnn_core.data.prefetch import close, prefetch
from maskrcnn_core.data.proposals import ImageProposals
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.preparation import Preparation, PreparedBatch, PreparedImage, reason_of
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.records.proposals import ProposalRecord

_State = TypeVar("_State")
_Record = TypeVar("_Record", ImageRecord, ProposalRecord)

_Padded = tuple[list[PreparedImage], PreparedBatch | None]
_Finished = Generator[tuple[list[PreparedImage], Sequence[_Record | ImageRecord]], None, None]

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

    def records(
        self,
        encoded: Sequence[bytes | Tensor | ImageError],
        proposals: Sequence[ImageProposals | ImageError | None],
        steps: Steps[_State, _Record],
    ) -> list[_Record | ImageRecord]:
        """What the steps make of the images, in order; an image that fails has an `ImageRecord` that says why."""
        records: dict[int, _Record | ImageRecord] = {}

        def failed(index: int, error: ImageError) -> None:
            records[index] = ImageRecord(error.status, " ".join(str(error).split()), None, None)

        batches = self._padded(self._preparation.batches(encoded, proposals, failed))
        # With one image there is nothing to do beside it, and handing it from thread to thread takes a while.
        overlapped = self._overlapped and len(encoded) > 1
        in_turn = self._overlapping if overlapped else self._one_after_the_other
        with closing(in_turn(batches, steps)) as finished:
            for items, results in finished:
                records.update(zip((item.index for item in items), results, strict=True))
        return [records[index] for index in range(len(encoded))]

    def _padded(self, groups: Iterator[list[PreparedImage]]) -> Iterator[_Padded]:
        """Each group, and its batch where there is memory for it."""
        try:
            for items in groups:
                try:
                    batch = self._preparation.padded(items)
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
        for items, batch in batches:
            yield items, self._now(items, batch, steps)

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
                for items, batch in ready:
                    if len(started) == _MOST_STARTED:
                        yield self._settled(*started.popleft(), steps)
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
    ) -> tuple[list[PreparedImage], Sequence[_Record | ImageRecord]]:
        try:
            return items, future.result()
        except Exception as error:
            return items, self._one_by_one(items, error, steps)

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


class _Finisher:
    """One thread that finishes batches in the order in which they were started; it ends with this object.

    On a GPU it has a stream of its own, so that its work does not queue up behind the batch after, and goes first where
    both could: it is little, and the host waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._thread = ThreadPoolExecutor(1, "finish")
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def submit(self, finish: Callable[[_State], list[_Record]], state: _State) -> Future[list[_Record]]:
        """`finish` of a state whose computation lies on the caller's stream up to here."""
        if self._stream is None:
            return self._thread.submit(finish, state)
        computed = torch.cuda.Event()
        computed.record(torch.cuda.current_stream(self._device))
        return self._thread.submit(_finish_on, self._stream, computed, finish, state)


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
