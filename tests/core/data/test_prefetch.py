"""Threads that make things ahead: in order, not too many, errors in their place, and alone with torch.

`prefetch` itself is tested with the training loader, whose it was first.
"""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from maskrcnn_core.data.prefetch import MapAhead, prefetch


@pytest.mark.parametrize("threads", [1, 3])
def test_results_and_errors_come_in_order(threads: int) -> None:
    def make(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        if item == 4:
            raise ValueError("four")
        return item * item

    made: list[int | str] = []
    for result in MapAhead(threads, "test")(make, range(10)):
        try:
            made.append(result())
        except ValueError as error:
            made.append(str(error))
    assert made == [0, 1, 4, 9, "four", 25, 36, 49, 64, 81]
    assert list(MapAhead(threads, "test")(make, [])) == []


def test_no_more_is_made_ahead_than_was_said() -> None:
    begun: list[int] = []
    results = MapAhead(2, "test", depth=2)(begun.append, range(50))
    for place in range(20):
        next(results)()
        assert len(begun) <= place + 1 + 4
    results.close()  # type: ignore[attr-defined]
    time.sleep(0.05)
    assert len(begun) <= 25


def test_no_more_is_asked_for_than_waits() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    results = MapAhead(2, "test", depth=2)(abs, items())
    for place in range(10):
        next(results)()
        assert len(taken) == place + 1 + 4  # the four that wait, and the one that comes in the place of what was given
    results.close()  # type: ignore[attr-defined]


def test_one_thread_makes_nothing_ahead() -> None:
    begun: list[int] = []
    results = MapAhead(1, "test")(begun.append, range(5))
    first, second = next(results), next(results)
    assert begun == []
    second()
    first()
    assert begun == [1, 0]


def test_torch_computes_with_one_thread_in_each_and_as_before_elsewhere() -> None:
    before = torch.get_num_threads()
    results = MapAhead(3, "test")(lambda _: (threading.current_thread().name, torch.get_num_threads()), range(12))
    found = [result() for result in results]
    assert {threads for _, threads in found} == {1}
    assert all(name.startswith("test") for name, _ in found)
    assert torch.get_num_threads() == before
    seen = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [before]


def test_closing_a_prefetch_closes_what_it_reads() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    items = prefetch(endless(), depth=1)
    assert next(items) == 1
    items.close()
    assert closed.is_set()
