"""Pieces on several threads."""

import os
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from maskrcnn_core.layers.thread_team import in_pieces


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_each_piece_is_called_once(count: int, three_threads: None) -> None:
    called: list[int] = []
    in_pieces(partial(called.append, index) for index in range(count))
    assert sorted(called) == list(range(count))


def test_pieces_run_at_the_same_time_with_one_thread_each(three_threads: None) -> None:
    together, seen = threading.Barrier(3, timeout=30), []

    def piece() -> None:
        together.wait()
        seen.append((threading.current_thread().name, torch.get_num_threads(), torch.is_inference_mode_enabled()))

    with torch.inference_mode():
        in_pieces([piece] * 3)
    assert len({name for name, *_ in seen}) == 3
    assert {(threads, inference) for _, threads, inference in seen} == {(1, True)}
    assert torch.get_num_threads() == 3


def test_threads_to_come_have_as_many_as_before(three_threads: None) -> None:
    in_pieces([lambda: None] * 4)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [3]


def test_a_single_piece_has_all_threads(three_threads: None) -> None:
    found: list[int] = []
    in_pieces([lambda: found.append(torch.get_num_threads())])
    assert found == [3]


def test_a_thread_that_is_held_up_takes_fewer(three_threads: None) -> None:
    taken: list[str] = []
    held = threading.Event()

    def piece() -> None:
        taken.append(threading.current_thread().name)
        if len(taken) == 1:
            held.wait(30)  # until the others have done all there is
        if len(taken) == 30:
            held.set()
        time.sleep(0.001)

    in_pieces([piece] * 30)
    assert len(taken) == 30
    assert taken.count(taken[0]) == 1


def test_what_a_piece_raises_comes_back(three_threads: None) -> None:
    def piece() -> None:
        raise ValueError("this one")

    with pytest.raises(ValueError, match="this one"):
        in_pieces([piece] * 5)
    in_pieces([lambda: None] * 5)  # and the threads are still there


def test_nothing_is_under_way_when_it_raises(three_threads: None) -> None:
    together, ended = threading.Barrier(2, timeout=30), []

    def fails() -> None:
        together.wait()
        raise ValueError("this one")

    def goes_on() -> None:
        together.wait()
        time.sleep(0.2)
        ended.append(True)

    with pytest.raises(ValueError, match="this one"):
        in_pieces([fails, goes_on])
    assert ended == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own(three_threads: None) -> None:
    in_pieces([lambda: None] * 4)
    child = os.fork()
    if child == 0:
        called: list[int] = []
        in_pieces([lambda: called.append(1)] * 4)
        os._exit(0 if len(called) == 4 else 1)
    for _ in range(300):
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")
