"""Cases in a process of their own, so that one which crashes, hangs or eats memory is a finding and not the end.

A child process runs case after case and tells the outcome of each; where it dies or is silent for too long, the case
that it had begun is at fault, and another child goes on with the next one.
"""

import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

# A case may take so much memory beyond the idle process, and so long beside other work.
MOST_BYTES = 1 << 30
MOST_SECONDS = 60.0

_ADDRESS_SPACE = 6 << 30


@dataclass(frozen=True)
class Outcome:
    """What a case came to.

    Attributes:
        case: its number, which decides everything about it.
        verdict: such as `ok`, `one line`, `unreadable`; a finding begins with `!`.
        text: what was printed or raised.
        seconds: it took.
        bytes: peak of memory over the idle process.
    """

    case: int
    verdict: str
    text: str = ""
    seconds: float = 0.0
    bytes: int = 0

    @property
    def is_finding(self) -> bool:
        """Whether the product is at fault."""
        return self.verdict.startswith("!")


Run = Callable[[int], tuple[str, str]]
"""A case by its number -> verdict and text."""


def run_cases(run: Run, cases: Sequence[int], *, most_seconds: float = MOST_SECONDS) -> Iterator[Outcome]:
    """The outcome of each case, in order."""
    left = list(cases)
    while left:
        for outcome in _in_a_child(run, left, most_seconds):
            left.remove(outcome.case)
            yield outcome


def _in_a_child(run: Run, cases: Sequence[int], most_seconds: float) -> Iterator[Outcome]:
    """Outcomes until the child ends, with a finding for the case that it died of."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(run, cases, writing)
    os.close(writing)
    begun: int | None = None
    started = time.monotonic()
    ending = ""
    try:
        for line in _lines(reading, most_seconds):
            told = json.loads(line)
            if isinstance(told, int):
                begun, started = told, time.monotonic()
            else:
                begun = None
                yield Outcome(**told)
    except TimeoutError:
        ending = f"nothing for {most_seconds:.0f} s"
        os.kill(child, signal.SIGKILL)
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    if begun is not None:
        verdict = "!hang" if ending else "!crash"
        died = (
            f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.waitstatus_to_exitcode(status)}"
        )
        yield Outcome(begun, verdict, ending or died, time.monotonic() - started)


def _lines(stream: int, most_seconds: float) -> Iterator[bytes]:
    held = b""
    while True:
        if not select.select([stream], [], [], most_seconds)[0]:
            raise TimeoutError
        content = os.read(stream, 1 << 16)
        if not content:
            return
        *lines, held = (held + content).split(b"\n")
        yield from lines


def _child(run: Run, cases: Sequence[int], stream: int) -> None:
    """Runs the cases and ends the process; never returns."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + _ADDRESS_SPACE,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for case in cases:
            os.write(stream, f"{case}\n".encode())
            os.write(stream, json.dumps(asdict(_measured(run, case))).encode() + b"\n")
    except BaseException:
        traceback.print_exc()
        os._exit(70)
    os._exit(0)


def _measured(run: Run, case: int) -> Outcome:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    idle, started = _memory("VmRSS"), time.monotonic()
    try:
        verdict, text = run(case)
    except Exception:
        verdict, text = "!traceback", traceback.format_exc()
    peak = max(0, _memory("VmHWM") - idle)
    if peak > MOST_BYTES and not verdict.startswith("!"):
        verdict = "!memory"
    return Outcome(case, verdict, text[-2000:], time.monotonic() - started, peak)


def _memory(name: str) -> int:
    """A line of this process's status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


@contextmanager
def held_output() -> Iterator[Callable[[], tuple[str, str]]]:
    """What is printed inside the block, by Python or by C, is held back; the function gives stdout's and stderr's."""
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)

        def printed() -> tuple[str, str]:
            sys.stdout.flush()
            sys.stderr.flush()
            return tuple(_content(file) for file in (out, err))  # type: ignore[return-value]

        def _content(file: object) -> str:
            file.seek(0)  # type: ignore[attr-defined]
            return str(file.read().decode("utf-8", "replace"))  # type: ignore[attr-defined]

        try:
            yield printed
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])
