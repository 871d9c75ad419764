"""How Numba compiles the loops, and on how many threads they run."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from maskrcnn_core.kernels.cpu.cache import kept_on_disk

# NaN and infinity must stay what they are, so no fast arithmetic; division by zero as in C.
_OPTIONS: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


def compiled(*, parallel: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the function compiled at its first call for each type of arguments, and kept on disk where that can be
    written (`cache.py`)."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        made: Callable[..., Any] = numba.njit(parallel=parallel, **_OPTIONS)(function)
        kept_on_disk(made, function)
        return made

    return decorate


def as_array(maps: Tensor) -> np.ndarray:
    """A tensor's memory as an array; bfloat16, which numpy has not, as the integers of the same bits."""
    array: np.ndarray = (maps.view(torch.uint16) if maps.dtype == torch.bfloat16 else maps).numpy()
    return array


def run(alone: Callable[..., Any], together: Callable[..., Any], *arguments: Any, count: int) -> None:
    """Run a loop on as many threads as torch uses.

    torch's team of threads is Numba's too (both use the OpenMP library that torch brings), so that they don't stand in
    each other's way.

    Args:
        alone: the loop of one thread: (arguments, first, last + 1).
        together: the same on several: (arguments, count, parts that the loop is cut into).
        count: how often the loop runs.
    """
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if threads > 1:
        numba.set_num_threads(threads)  # of the calling thread
        # The layer that Numba falls back to without OpenMP cannot be called by two threads at once.
        if numba.threading_layer() != "workqueue":
            together(*arguments, count, threads)
            return
    alone(*arguments, 0, count)
