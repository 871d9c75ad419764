"""What the workers of a labelling run have done so far: a board that they report to.

It also knows which images each worker is busy with, so that an image which ends the worker's process (a crash in a
library, the system's memory killer) is found out instead of being tried for ever.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pipelines.labelling.device_faults import DeviceFaults, Standing
from pipelines.labels.chunks import Tally

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Work:
    """What one piece of work brought.

    Attributes:
        images, detections, failed: in it.
        busy, waited: seconds that the detector worked on it, and stood still before it for want of images.
        device: that it was done on; empty where it says nothing of one.
    """

    images: int = 0
    detections: int = 0
    failed: int = 0
    busy: float = 0.0
    waited: float = 0.0
    device: str = ""


@dataclass(frozen=True)
class Counts:
    """Work of this start of a run.

    Attributes:
        images, detections, failed: so far.
        seconds: from the first batch to the last one that is done.
        busy, waited: of all detectors together, seconds; see `Work`.
    """

    images: int = 0
    detections: int = 0
    failed: int = 0
    seconds: float = 0.0
    busy: float = 0.0
    waited: float = 0.0

    @property
    def waiting_share(self) -> float:
        """Of the detectors' time, how much they stood still for want of images."""
        return self.waited / (self.busy + self.waited) if self.busy + self.waited > 0 else 0.0

    @property
    def images_per_second(self) -> float:
        """Without start-up; 0 before the first batch is done."""
        return self.images / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class LabelProgress:
    """How far a labelling run is.

    Attributes:
        images: of the whole run.
        done: of them labelled, by earlier starts as well.
        detections, failed: among the done ones.
        images_per_second: of this start, from its first batch.
        waiting_share: of the detectors' time, how much they stood still for want of images.
        detections_per_second: of this start.
    """

    images: int
    done: int
    detections: int
    failed: int
    images_per_second: float
    waiting_share: float = 0.0
    detections_per_second: float = 0.0


class Board(Protocol):
    """Where a worker reports."""

    def begin(self, key: int) -> int:
        """Work named `key` starts; returns how often it was begun and not finished, this time included."""
        ...

    def done(self, key: int, work: Work) -> None:
        """Work named `key` is finished, with what it brought."""
        ...

    def join(self, device: str) -> Standing:
        """A worker starts on a device, which may have been given up; see `device_faults`."""
        ...

    def fault(self, device: str, cause: int, reason: str) -> Standing:
        """The detector fails on everything there, or hangs, and its process ends; see `DeviceFaults`."""
        ...


class ProgressBoard:
    """A `Board` that threads may share; on a cluster the state of an actor (`remote_board`)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._devices = DeviceFaults()
        self._begun: dict[int, int] = {}
        self._counts = Counts()
        self._start: float | None = None

    def begin(self, key: int) -> int:
        """See `Board`."""
        with self._lock:
            if self._start is None:
                self._start = time.monotonic()
            self._begun[key] = self._begun.get(key, 0) + 1
            return self._begun[key]

    def done(self, key: int, work: Work) -> None:
        """See `Board`."""
        with self._lock:
            self._begun.pop(key, None)
            if work.device and work.failed < max(1, work.images):
                self._devices.success(work.device)
            before, now = self._counts, time.monotonic()
            self._counts = Counts(
                images=before.images + work.images,
                detections=before.detections + work.detections,
                failed=before.failed + work.failed,
                seconds=now - (self._start if self._start is not None else now),
                busy=before.busy + work.busy,
                waited=before.waited + work.waited,
            )

    def join(self, device: str) -> Standing:
        """See `Board`."""
        with self._lock:
            return self._devices.join(device)

    def fault(self, device: str, cause: int, reason: str) -> Standing:
        """See `Board`."""
        with self._lock:
            return self._devices.fault(device, cause, reason)

    def snapshot(self) -> Counts:
        """The counts so far."""
        return self._counts


class Counting(Protocol):
    """A board that can be asked."""

    def snapshot(self) -> Counts:
        """The counts so far."""
        ...


class Poller:
    """Calls `report` with the board's counts about once a second, from a thread of its own, while the block runs.

    An exception of `report` is raised by the next `check`, or at the end of the block.
    """

    def __init__(self, board: Counting, report: Callable[[Counts], None] | None) -> None:
        self._board = board
        self._report = report
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._poll, name="label-progress", daemon=True)

    def __enter__(self) -> "Poller":
        if self._report is not None:
            self._thread.start()
        return self

    def __exit__(self, error_type: object, error: object, trace: object) -> None:
        self._stop.set()
        if self._report is not None:
            self._thread.join()
        if error is None:
            self.check()

    def check(self) -> None:
        """Raises what `report` raised."""
        if self._error is not None:
            raise self._error

    def _poll(self) -> None:
        assert self._report is not None
        try:
            while not self._stop.wait(_POLL_SECONDS):
                self._report(self._board.snapshot())
        except Exception as error:
            self._error = error


def reporter(on_progress: Callable[[LabelProgress], None], before: Tally, images: int) -> Callable[[Counts], None]:
    """Takes counts of this start, and calls `on_progress` with those of the run.

    Args:
        on_progress: takes them.
        before: what earlier starts have done.
        images: of the run.
    """

    def report(counts: Counts) -> None:
        done = min(images, before.images + counts.images)  # work that a lost process repeats is counted twice
        on_progress(
            LabelProgress(
                images=images,
                done=done,
                detections=before.detections + counts.detections,
                failed=before.failed + counts.failed,
                images_per_second=counts.images_per_second,
                waiting_share=counts.waiting_share,
                detections_per_second=counts.detections / counts.seconds if counts.seconds else 0.0,
            )
        )

    return report
