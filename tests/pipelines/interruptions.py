"""Jobs as processes of their own, signals for them, and a look at what they leave behind."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_MARK = "MASKRCNN_TEST_JOB"
_LONGEST_SECONDS = 240.0
# Ray's agents look every few seconds whether the process that started them still lives.
_QUIET_SECONDS = 30.0


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        code: negative where a signal ended it.
        seconds: from the signal, or from the start.
        out, err: what it printed.
        left: command lines of its processes that still lived some seconds later.
    """

    code: int
    seconds: float
    out: str
    err: str
    left: tuple[str, ...]


class Job:
    """A started job; `folder` gets what it prints."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._out, self._err = (folder / f"{self._mark}.{stream}" for stream in ("out", "err"))
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"jobs.{name}", *arguments],
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env={**os.environ, _MARK: self._mark},
                start_new_session=True,
            )
        self.started = time.monotonic()

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return self._out.read_text(errors="replace")

    def end(self, number: int | None = None) -> Ended:
        """Sends a signal, if there is one to send, and waits for the end."""
        begin = time.monotonic()
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(_LONGEST_SECONDS)
        seconds = time.monotonic() - begin
        until = time.monotonic() + _QUIET_SECONDS
        while (left := processes_of(self._mark)) and time.monotonic() < until:
            time.sleep(0.2)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return Ended(code, seconds, self.out, self._err.read_text(errors="replace"), tuple(left.values()))


def processes_of(mark: str) -> dict[int, str]:
    """Processes with a job's mark in their environment, its descendants wherever they have gone, by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if f"{_MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
    return found


def interrupted(job: Job, seconds: float, number: int) -> Ended | None:
    """A job that gets a signal after some seconds; None where it had ended before."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        job.process.wait(seconds)
        return None
    return job.end(number)


def moments(seed: int, longest: float, number: int) -> list[float]:
    """So many seconds, drawn at random, spread over the whole length of a job."""
    dice = random.Random(seed)
    drawn = [(index + dice.random()) * longest / number for index in range(number)]
    dice.shuffle(drawn)
    return drawn
