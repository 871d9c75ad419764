"""Work ahead on threads: what is prepared on the host is ready when the network asks for it."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def prefetch(items: Iterator[_Item], depth: int, *, alone: bool = False) -> Generator[_Item]:
    """The same items, computed up to `depth` ahead by one background thread.

    With `alone` torch computes with that thread only, as in a process of torch's DataLoader: its resizing gives other
    last bits with several threads.

    An exception in the thread is raised here, at its place in the order. Closing the generator ends the thread, which
    closes `items` where that is a generator.
    """
    ready: queue.Queue[tuple[_Item | None, BaseException | None]] = queue.Queue(maxsize=depth)
    stopped, started = threading.Event(), threading.Event()

    def put(item: _Item | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def fill() -> None:
        try:
            if alone:
                _compute_alone()
            started.set()
            for item in items:
                put(item, None)
                if stopped.is_set():
                    close(items)
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=fill, name="prefetch", daemon=True)
    threads = torch.get_num_threads()
    thread.start()
    started.wait()
    if alone:
        torch.set_num_threads(threads)  # the thread has set the number of threads to come as well
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


def close(items: Iterator[_Item]) -> None:
    """End a generator now rather than when it is collected; other iterators have nothing to end."""
    if (end := getattr(items, "close", None)) is not None:
        end()


class MapAhead:
    """Makes one thing of each item, in order, on threads that are kept and work ahead of whoever asks.

    In these threads torch computes with one thread each; otherwise every one of them would keep a team of as many
    threads as there are cores.

    Args:
        threads: how many, begun when first needed, and ended with this object; 1 = none: each thing is made when it is
            asked for.
        name: of the threads.
        depth: so many things for each thread are made or being made before they are asked for, at most.
    """

    def __init__(self, threads: int, name: str, depth: int = 2) -> None:
        self._threads, self._name, self._most_waiting = threads, name, depth * threads
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __call__(self, make: Callable[[_Item], _Made], items: Iterable[_Item]) -> Iterator[Callable[[], _Made]]:
        """For each item a call that returns or raises what `make` does of it. What has not begun when the generator is
        closed is never made."""
        if self._threads == 1:
            yield from (partial(make, item) for item in items)
            return
        pool = self._begun()
        waiting: deque[Future[_Made]] = deque()
        try:
            for item in items:
                if len(waiting) >= self._most_waiting:
                    yield waiting.popleft().result
                waiting.append(pool.submit(make, item))
            while waiting:
                yield waiting.popleft().result
        finally:
            for future in waiting:
                future.cancel()

    def _begun(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = _lone_threads(self._threads, self._name)
            return self._pool


def _lone_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads, all running, in each of which torch computes with that thread alone."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, name, initializer=_compute_alone)
    # The number is one of the calling thread and the one of threads to come: set back once all have read it.
    started = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(threads)
    return pool


def _compute_alone() -> None:
    torch.get_num_threads()  # the first time in a thread this takes over the number that all threads share
    torch.set_num_threads(1)
