"""Threads that read, and are given up when a read hangs: nothing ends one on a network drive whose server is gone."""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

_Result = TypeVar("_Result")

_LOOK_SECONDS = 0.5


class ReadingThreads:
    """Calls functions in threads of its own, which do not keep the process from ending.

    Args:
        threads: how many calls are made at the same time.
        limit: seconds of one call; 0 = no limit.
    """

    def __init__(self, threads: int, limit: float) -> None:
        self.limit = limit
        self._calls: SimpleQueue[Call[object]] = SimpleQueue()
        self._threads = 0
        self.grow(threads)

    def grow(self, threads: int) -> None:
        """Make at least so many calls at the same time."""
        while self._threads < threads:
            self._threads += 1
            self.start_thread()

    def submit(self, function: Callable[[], _Result]) -> "Call[_Result]":
        """Call the function as soon as a thread is free."""
        call = Call(function, self)
        self._calls.put(call)  # type: ignore[arg-type]
        return call

    def start_thread(self) -> None:
        """One more, in place of one that hangs."""
        threading.Thread(target=self._work, name="read", daemon=True).start()

    def _work(self) -> None:
        while self._calls.get().run():
            pass


class Call(Generic[_Result]):
    """A call that is waiting, running or done."""

    def __init__(self, function: Callable[[], _Result], threads: ReadingThreads) -> None:
        self._function, self._threads = function, threads
        self._lock, self._done = threading.Lock(), threading.Event()
        self._started: float | None = None
        self._is_given_up = False
        self._value: _Result | None = None
        self._error: BaseException | None = None

    def run(self) -> bool:
        """Make the call; returns whether its thread is still wanted."""
        self._started = time.monotonic()
        value, error = None, None
        try:
            value = self._function()
        except BaseException as raised:
            error = raised
        with self._lock:
            self._value, self._error = value, error
            self._done.set()
            return not self._is_given_up

    def result(self) -> _Result:
        """What the function returned, or raised.

        Raises:
            TimeoutError: the call has taken longer than the limit; its thread is left to itself.
        """
        limit = self._threads.limit
        while not self._done.wait(_LOOK_SECONDS if limit else None):
            with self._lock:
                if self._started is None or time.monotonic() - self._started < limit or self._done.is_set():
                    continue
                is_first, self._is_given_up = not self._is_given_up, True
            if is_first:
                self._threads.start_thread()
            raise TimeoutError(f"took longer than {limit:g} s")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]
