"""Calls that hang are given up, and those behind them are made."""

import threading
import time
from functools import partial
from operator import floordiv

import pytest

from pipelines.images.reading_threads import ReadingThreads


def test_results_and_errors_come_back() -> None:
    threads = ReadingThreads(2, limit=5)
    calls = [threads.submit(partial(floordiv, 1, k)) for k in (1, 0, 2)]
    assert calls[0].result() == 1
    with pytest.raises(ZeroDivisionError):
        calls[1].result()
    assert calls[2].result() == calls[2].result() == 0


@pytest.mark.parametrize("limit", [0.0, 5.0])
def test_as_many_at_once_as_there_are_threads(limit: float) -> None:
    threads, together = ReadingThreads(3, limit), threading.Barrier(3, timeout=10)
    calls = [threads.submit(together.wait) for _ in range(6)]
    assert sorted(call.result() for call in calls) == [0, 0, 1, 1, 2, 2]


def test_a_call_that_hangs_is_given_up_and_its_thread_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.images.reading_threads._LOOK_SECONDS", 0.01)
    threads, released = ReadingThreads(1, limit=0.1), threading.Event()
    hangs = [threads.submit(released.wait) for _ in range(2)]
    behind = threads.submit(lambda: "read")
    for call in hangs:
        with pytest.raises(TimeoutError, match=r"longer than 0.1 s"):
            call.result()
        with pytest.raises(TimeoutError):  # asked twice: not replaced twice
            call.result()
    assert behind.result() == "read"
    count = sum(thread.name == "read" and thread.is_alive() for thread in threading.enumerate())
    released.set()
    time.sleep(0.1)
    left = sum(thread.name == "read" and thread.is_alive() for thread in threading.enumerate())
    assert count - left == 2  # what hung ends when it can


def test_waiting_for_a_thread_is_not_the_calls_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.images.reading_threads._LOOK_SECONDS", 0.01)
    threads = ReadingThreads(1, limit=0.5)
    calls = [threads.submit(lambda: time.sleep(0.2)) for _ in range(5)]
    for call in reversed(calls):  # 1 s in all
        call.result()
