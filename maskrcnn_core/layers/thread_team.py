"""Pieces of one computation on several threads, each of which takes the next piece when it is done with one.

Inside an operator of torch the threads get equal shares, and each such region ends when its last thread does. Where
another process uses one of the cores, all wait for the thread that was on it, at every one of a network's hundreds of
regions. Here the pieces are whole bands of a map, from the first to the last of a layer's operators; a thread that is
held up takes fewer of them, and there is one end to wait for instead of some hundred.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress

import torch

_M_ARENA_MAX = -8

Piece = Callable[[], None]

_lock = threading.Lock()
_teams: dict[int, ThreadPoolExecutor] = {}


def in_pieces(pieces: Iterable[Piece]) -> None:
    """Calls each of them, on as many threads as torch uses here; each computes with one thread of torch's. A single
    piece is called here, where torch's operators have all threads.

    Raises:
        Exception: that of a piece; others may not have been called then, and none is under way.
    """
    waiting = list(pieces)
    threads = torch.get_num_threads()
    if threads < 2 or len(waiting) < 2:
        for piece in waiting:
            piece()
        return
    queue = iter(waiting)  # gives each piece to one thread
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def take() -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            for piece in queue:
                piece()

    members = [_team(threads).submit(take) for _ in range(min(threads, len(waiting)))]
    # Once one of them finds nothing left, those that have not begun need not.
    wait(members, return_when=FIRST_COMPLETED)
    begun = [member for member in members if not member.cancel()]
    wait(begun)
    for member in begun:
        member.result()


def _share_one_heap() -> None:
    """What threads allocate from now on comes from the heap of the main one, with glibc: those of others are small,
    and give large blocks back to the system, whose pages it then takes longer to get again than to compute on."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _team(threads: int) -> ThreadPoolExecutor:
    """The threads that compute where so many are asked for: all callers share them."""
    with _lock:
        if threads not in _teams:
            _share_one_heap()
            _teams[threads] = _new_team(threads)
        return _teams[threads]


def _new_team(threads: int) -> ThreadPoolExecutor:
    started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread's first question sets what holds for all, which from then on is its own
        started.wait()

    team = ThreadPoolExecutor(threads, "band", initializer=start)
    for _ in range(threads):
        team.submit(lambda: None)
    started.wait()
    torch.set_num_threads(threads)  # each of them has set the number of threads to come as well
    return team


def _forget() -> None:
    """A forked process has none of the threads, and nobody who would open the lock."""
    global _lock
    _lock = threading.Lock()
    _teams.clear()


os.register_at_fork(after_in_child=_forget)
