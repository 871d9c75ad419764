"""A tracker in a thread of its own: a slow server holds up no step, and one that is away ends no run."""

import queue
import threading
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pipelines.training.trackers.tracker import Outcome, Tracker

_MOST_WAITING = 10_000
_CLOSE_SECONDS = 60.0

_Call = Callable[[Tracker], None]


class BackgroundTracker:
    """Hands everything on, in order, to a tracker that only its thread knows.

    Args:
        start: makes the tracker; called in the thread.
        on_failure: called in the thread with the first error, and not again. Later calls are tried all the same, unless
            the tracker could not be made.
    """

    def __init__(self, start: Callable[[], Tracker], on_failure: Callable[[str], None]) -> None:
        self._start, self._on_failure = start, on_failure
        self._calls: queue.Queue[_Call | None] = queue.Queue(_MOST_WAITING)
        self._has_failed = False
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._put(lambda tracker: tracker.scalars(values, step))

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """See `Tracker`."""
        self._put(lambda tracker: tracker.picture(name, pixels, step))

    def close(self, outcome: Outcome, results: Mapping[str, float]) -> None:
        """See `Tracker`; waits at most a minute for what is still to be sent."""
        self._put(lambda tracker: tracker.close(outcome, results))
        self._put(None)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            self._fail(f"it took longer than {_CLOSE_SECONDS:.0f} seconds to send what was left")

    def _put(self, call: _Call | None) -> None:
        """What finds the queue full is left out: the server has not answered for thousands of reports."""
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._fail(f"{_MOST_WAITING} reports wait for it, further ones are left out")

    def _work(self) -> None:
        try:
            tracker = self._start()
        except BaseException as error:  # whatever a package raises, training goes on
            self._fail(_first_line(error))
            return
        while (call := self._calls.get()) is not None:
            try:
                call(tracker)
            except Exception as error:  # as above
                self._fail(_first_line(error))

    def _fail(self, reason: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._on_failure(reason)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
