"""Processes that stand still: stopped by a signal, by a debugger, by a device that does not answer, or in a library
that lets no other thread run. They cannot notice it themselves, and nothing that they were given would come back.

Each process gives a sign of life every few seconds. Who gives none for long is ended from outside, and replaced as any
process that dies.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipelines.labelling.config import LabelConfig

SIGN_SECONDS = 5.0

# However busy a machine is, a thread that only says that it is there gets its turn within this.
_LONGEST_SILENCE = 120.0
_LEAST_SILENCE = 4 * SIGN_SECONDS

Who = TypeVar("Who", bound=Hashable)


@dataclass(frozen=True)
class ProcessId:
    """A process of a machine.

    Attributes:
        node: of Ray.
        pid: its number there.
        started: when it began, as its system says; another process may have the number by now.
    """

    node: str
    pid: int
    started: str


def longest_silence(label: LabelConfig) -> float | None:
    """Seconds without a sign after which a process is ended; None = never."""
    if not label.image_timeout:
        return None
    return min(_LONGEST_SILENCE, max(_LEAST_SILENCE, label.image_timeout))


def this_process(node: str) -> ProcessId:
    """The one that asks."""
    return ProcessId(node, os.getpid(), _start_of(os.getpid()))


def end_process(process: ProcessId) -> None:
    """Ends it, on its machine, if it is still the one that it was."""
    with suppress(OSError):
        if _start_of(process.pid) == process.started:
            os.kill(process.pid, signal.SIGKILL)  # a stopped one takes no other


def give_signs(sign: Callable[[], None]) -> None:
    """Calls it every few seconds, from a thread of its own, as long as this process lives."""

    def signs() -> None:
        while True:
            with suppress(Exception):  # whoever listens may be out of reach for a while
                sign()
            time.sleep(SIGN_SECONDS)

    threading.Thread(target=signs, name="signs-of-life", daemon=True).start()


class SignsOfLife(Generic[Who]):
    """When whose last sign came; threads may share it.

    Args:
        clock: seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._heard: dict[Who, float] = {}
        self._looked: float | None = None

    def hear(self, who: Who) -> None:
        """A sign has come."""
        with self._lock:
            self._heard[who] = self._clock()

    def forget(self, who: Who) -> None:
        """No more signs are expected."""
        with self._lock:
            self._heard.pop(who, None)

    def silent(self, seconds: float) -> list[Who]:
        """Who has given no sign for so long; they are forgotten. To be asked every few seconds: after a longer pause it
        was this process that stood still, and nobody is."""
        with self._lock:
            now = self._clock()
            stood_still = self._looked is not None and now - self._looked > seconds / 2
            self._looked = now
            if stood_still:
                self._heard = dict.fromkeys(self._heard, now)
            silent = [who for who, heard in self._heard.items() if now - heard > seconds]
            for who in silent:
                del self._heard[who]
            return silent


def _start_of(pid: int) -> str:
    """Empty where the system does not say."""
    with suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]
    return ""
