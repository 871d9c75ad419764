"""oneDNN's convolution for inference on a CPU, with a ReLU where one follows.

torch hands a convolution to oneDNN, except a 1x1 in float32 where one thread computes: that goes to a matrix product,
which on processors that MKL does not favour is less than half as fast (512 -> 2048 channels at 25 x 34: 21.7 against
8.5 ms on one core of an AMD EPYC). The operator that torch's own compiler uses always takes oneDNN.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    *,
    relu: bool = False,
) -> Tensor:
    """`torch.nn.functional.conv2d`, then ReLU where asked for; without gradients.

    Args:
        x: [N, C_in, H, W] on a CPU; weight, bias: of one type with it, float32 or bfloat16.
    """
    if _has_operator(weight.dtype) and x.numel() > 0:
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, list(padding), list(stride), list(dilation), groups, "relu" if relu else "none", [], ""
        )
        return output
    output = functional.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)
    return output.relu_() if relu else output


@cache
def _has_operator(dtype: torch.dtype) -> bool:
    """Whether this torch and this processor can."""
    try:
        with torch.inference_mode():
            one = torch.ones(1, 8, 2, 2, dtype=dtype)
            output = torch.ops.mkldnn._convolution_pointwise(
                one, one.new_ones(8, 8, 1, 1), None, [0, 0], [1, 1], [1, 1], 1, "relu", [], ""
            )
    except (AttributeError, RuntimeError):
        return False
    return bool((output == 8).all())
