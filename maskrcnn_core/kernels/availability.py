"""Whether Triton's kernels and cuDNN's fused convolutions run here: on a CUDA device, unless they are switched off."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, get_args

from torch import Tensor

SWITCH = "MASKRCNN_WITHOUT"
"""Environment variable: names of kernels, separated by commas, that torch's and torchvision's operators shall stand in
for, or `all`; to compare the two, and for where Triton fails."""

Kernel = Literal["suppression", "roi_align", "convolution", "masks", "top_down"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


def use_kernels(tensor: Tensor, kernel: Kernel) -> bool:
    """Whether a kernel of ours, rather than torch's operators, is to work on this tensor."""
    return tensor.is_cuda and _installed() and kernel not in (without := _without()) and "all" not in without


@contextmanager
def without_kernels(names: str = "all") -> Iterator[None]:
    """Within it, in every thread of this process, torch's and torchvision's operators stand in for these kernels (as
    `SWITCH` names them)."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = names
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


def _without() -> list[str]:
    return [name.strip() for name in os.environ.get(SWITCH, "").split(",")]


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
