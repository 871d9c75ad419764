"""Computation compiled for each shape of its input, for as many shapes as are worth it."""

from collections.abc import Callable

import torch
from torch import Tensor

Compute = Callable[[Tensor], list[Tensor]]

# Compiling takes from seconds to minutes, and torch itself gives up on a function after eight shapes.
MOST_SHAPES = 8


class CompiledByShape:
    """`compute`, compiled for the first `most_shapes` shapes of input that it sees; as it is for any other.

    One compiled program for all shapes (dynamic) would be slower on each of them. Images that keep their proportions
    come in few shapes: both sides are multiples of the size divisor. A batch that is not full is a shape of its own.

    Args:
        compute: [N, 3, H, W] -> tensors; no result depends on an earlier call.
    """

    def __init__(self, compute: Compute, most_shapes: int = MOST_SHAPES) -> None:
        self._compute, self._most_shapes = compute, most_shapes
        self._by_shape: dict[tuple[int, ...], Compute] = {}

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """What `compute` makes of the pixels, up to rounding."""
        shape = tuple(pixels.shape)
        if shape not in self._by_shape:
            if len(self._by_shape) >= self._most_shapes:
                return self._compute(pixels)
            self._by_shape[shape] = torch.compile(self._compute, dynamic=False)
        return self._by_shape[shape](pixels)
