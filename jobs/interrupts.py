"""Ctrl-C and SIGTERM for a job: taken by a thread of its own, whatever handlers libraries install.

Ray replaces Python's handlers while it starts, Ray Train while it trains, and the C++ code of both prints a stack and
aborts. So both signals are blocked in all threads from the start and waited for in one. It wakes the main thread, where
`KeyboardInterrupt` unwinds the job as usual, and sees to it that the process ends: after a time limit, or at once when
a second signal comes. What it has started ends with it.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

# Seconds from the signal in which the job may close what it has opened.
_GRACE_SECONDS = 10.0

# What wakes the main thread: a real signal, since nothing else ends a system call that waits.
_WAKE = signal.SIGUSR1

_SHOW_CURSOR = "\x1b[?25h"


class Interrupts:
    """The signal that ends this process, once one has come.

    Args:
        line: what to say where the process has to end before the job has said anything.
        grace: seconds for closing what is open.
    """

    def __init__(self, line: str, grace: float) -> None:
        self._line, self._grace = line, grace
        self._main = threading.main_thread().ident
        self._watched = {number for number in (signal.SIGINT, signal.SIGTERM) if _is_heard(number)}
        self._is_armed = True
        self._stderr = os.dup(2)
        self._said = threading.Lock()
        self._descendants: set[tuple[int, str]] = set()
        self._watcher = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self.number: int | None = None

    def start(self) -> None:
        """Takes the signals from here on."""
        if not self._watched:
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, self._watched)
        # Children get the mask too, and would not hear a polite request to end.
        os.register_at_fork(after_in_child=self._release)
        signal.signal(_WAKE, self._wake)
        self._watcher.start()

    def disarm(self) -> None:
        """The job is over: what comes now no longer interrupts it."""
        self._is_armed = False

    def stop(self) -> None:
        """Gives the signals back, unless one has come: then the process will end by it."""
        if self.number is not None:
            return
        if self._watcher.ident is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(self._watcher.ident, next(iter(self._watched)))
            self._watcher.join()
            signal.signal(_WAKE, signal.SIG_DFL)
            self._release()
        os.close(self._stderr)

    def finish(self, line: str) -> None:
        """Ends what this process has started, and writes the one line about the interruption, to the stderr of
        before."""
        self._end_descendants()
        self._say(line)

    def _say(self, line: str) -> None:
        if self._said.acquire(blocking=False):
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                if sys.stdout.isatty():  # a progress bar hides it
                    os.write(sys.stdout.fileno(), _SHOW_CURSOR.encode())
            with contextlib.suppress(OSError):
                os.write(self._stderr, f"{line}\n".encode(errors="backslashreplace"))

    def _release(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._watched)

    def _watch(self) -> None:
        while True:
            number = signal.sigwait(self._watched)
            if not self._is_armed and self.number is None:
                return
            if self.number is not None:
                self._leave()
            self.number = number
            self._descendants = descendants()
            self._hush()
            limit = threading.Timer(self._grace, self._leave)
            limit.daemon = True
            limit.start()
            assert self._main is not None
            signal.pthread_kill(self._main, _WAKE)

    def _hush(self) -> None:
        """What libraries write to stderr while they are torn down is of no use to anyone."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)

    def _wake(self, number: int, frame: FrameType | None) -> None:
        if self._is_armed:
            self._is_armed = False  # one is enough: a second one would interrupt the closing
            raise KeyboardInterrupt

    def _leave(self) -> None:
        assert self.number is not None
        self._say(self._line)
        self._end_descendants()
        os._exit(128 + self.number)

    def _end_descendants(self) -> None:
        """Those of when the signal came as well: Ray's agents outlive the process that started them by many seconds,
        and are nobody's children then."""
        now = processes()
        for pid, started in self._descendants | descendants():
            if now.get(pid, (0, ""))[1] == started:  # not another process with a number that has become free
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


def processes() -> dict[int, tuple[int, str]]:
    """Parent and start time of every process of this machine by its number; none where there is no /proc."""
    table = {}
    with contextlib.suppress(OSError):
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{name}/stat") as file:
                fields = file.read().rpartition(")")[2].split()  # a command may hold blanks and brackets
                table[int(name)] = int(fields[1]), fields[19]
    return table


def descendants() -> set[tuple[int, str]]:
    """Number and start time of every process below this one."""
    known = processes()
    below, pids = {os.getpid()}, set[int]()
    while below:
        below = {pid for pid, (parent, _) in known.items() if parent in below and pid not in pids}
        pids |= below
    return {(pid, known[pid][1]) for pid in pids}


def _is_heard(number: int) -> bool:
    """A shell starts commands in the background with SIGINT ignored: it is for the one in front."""
    return signal.getsignal(number) != signal.SIG_IGN


@contextlib.contextmanager
def interrupts(line: str, grace: float = _GRACE_SECONDS) -> Iterator[Interrupts | None]:
    """The signals of this process inside the block; None outside of the main thread, where nothing can take them.

    Args:
        line: what to say where the process has to end before the block has.
        grace: seconds from a signal to the end of the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    taken = Interrupts(line, grace)
    taken.start()
    try:
        yield taken
    finally:
        taken.disarm()
        taken.stop()
