"""How long a worker's detector computed, and how long it stood still for want of images."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BusyTime:
    """Seconds between reports, told apart.

    What is waited is counted in one thread and reported in another.
    """

    def __init__(self) -> None:
        self._reported_at: float | None = None
        self._stopped_at = 0.0
        self._waited = self._waited_before = 0.0

    def start(self) -> None:
        """There is work again; without any the detector has waited, but not before the first."""
        now = time.monotonic()
        if self._reported_at is None:
            self._reported_at = now
        else:
            self._waited += now - self._stopped_at

    def stop(self) -> None:
        """There is no work."""
        self._stopped_at = time.monotonic()

    @contextmanager
    def waiting(self, idle_since: Callable[[], float | None]) -> Iterator[None]:
        """Images are waited for in the block, while the detector computes those before or has ended with them.

        Args:
            idle_since: when it ended with them, by `time.monotonic`; None = it computes.
        """
        started = time.monotonic()
        yield
        idle, ended = idle_since(), time.monotonic()
        if idle is not None:
            self._waited += max(0.0, ended - max(started, idle))

    def since_last_report(self) -> tuple[float, float]:
        """Seconds busy and waited."""
        now, waited = time.monotonic(), self._waited
        elapsed = now - (self._reported_at if self._reported_at is not None else now)
        share = min(elapsed, waited - self._waited_before)
        self._reported_at, self._waited_before = now, waited
        return elapsed - share, share
