"""Memory for large arrays on a CPU that is used again instead of asked for anew.

libc maps every block above 32 MB from the system and gives it back when it is freed. Each time, every page of it then
costs a fault, which for a feature map of 70 MB takes about as long as the convolution that fills it.
"""

import sys
import threading
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

_LARGE = 1 << 20
_probe = [np.empty(1)]
_FREE = sys.getrefcount(_probe[0])  # of an array that only a list holds


class BufferPool:
    """Hands out tensors whose memory returns to the pool when the last tensor or view over it is gone.

    Args:
        max_bytes: what is kept at most; beyond it, memory nobody holds is freed, oldest first.
    """

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        self._max_bytes = max_bytes
        self._arrays: list[np.ndarray] = []
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised, contiguous tensor on the CPU; small ones don't come from the pool."""
        wanted = prod(shape) * dtype.itemsize
        if wanted < _LARGE:
            return torch.empty(*shape, dtype=dtype)
        with self._lock:
            array = self._unused(wanted)
            if array is None:
                self._forget(wanted)
                array = np.empty(wanted, np.uint8)
                self._arrays.append(array)
            # The tensor holds a reference to the array until its storage goes.
            return torch.from_numpy(array)[:wanted].view(dtype).view(*shape)

    def maps(self, images: int, channels: int, height: int, width: int) -> Tensor:
        """An uninitialised float32 [N, C, H, W], channels last, that autograd does not take for a view."""
        pixels = self.empty((images, height, width, channels)).numpy()
        return torch.from_numpy(pixels.transpose(0, 3, 1, 2))

    @property
    def kept_bytes(self) -> int:
        """Memory of the pool, in use or not."""
        return sum(array.nbytes for array in self._arrays)

    def _unused(self, wanted: int) -> np.ndarray | None:
        """The smallest array that nobody else holds and that fits without wasting half of it."""
        fitting: np.ndarray | None = None
        for index in range(len(self._arrays)):
            size = len(self._arrays[index])
            fits = wanted <= size <= 2 * wanted
            if fits and sys.getrefcount(self._arrays[index]) == _FREE and (fitting is None or size < len(fitting)):
                fitting = self._arrays[index]
        return fitting

    def _forget(self, wanted_bytes: int) -> None:
        kept = self.kept_bytes
        index = 0
        while kept + wanted_bytes > self._max_bytes and index < len(self._arrays):
            if sys.getrefcount(self._arrays[index]) == _FREE:
                kept -= self._arrays.pop(index).nbytes
            else:
                index += 1


POOL = BufferPool()
