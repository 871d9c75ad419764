"""What is in work on a cluster, so that the process of a broken device knows when it is the last one.

Ray keeps the chunks that a process was given for the process that replaces it, on the same device. Where that device is
given up, they wait until all others are done, and then go to others.
"""

import time
from collections.abc import Callable

# Between two chunks of a worker, and while a machine is replaced, nothing is open for a moment.
_QUIET_SECONDS = 15.0


class OpenChunks:
    """The chunks that are in work, by device.

    Args:
        clock: seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, str] = {}
        self._last: float | None = None

    def begin(self, device: str, chunk: str) -> None:
        """A worker begins one."""
        self._open[chunk] = device
        self._last = self._clock()

    def end(self, chunk: str) -> None:
        """It is done."""
        self._open.pop(chunk, None)
        self._last = self._clock()

    def is_quiet(self, is_given_up: Callable[[str], bool]) -> bool:
        """Whether devices that work have worked, and have nothing in work any more."""
        if self._last is None or self._clock() - self._last < _QUIET_SECONDS:
            return False
        return all(is_given_up(device) for device in self._open.values())
