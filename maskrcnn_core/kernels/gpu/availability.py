"""Whether Triton's kernels and cuDNN's fused convolutions run here: on a CUDA device, unless they are switched off.

`kernels.cpu.availability` says so of the loops for CPUs, which have the same switch.
"""

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor

_LOGGER = logging.getLogger(__name__)

SWITCH = "MASKRCNN_WITHOUT"
"""Environment variable: names of kernels, separated by commas, that torch's and torchvision's operators shall stand in
for, or `all`; to compare the two, and for where Triton fails."""

Kernel = Literal["suppression", "roi_align", "convolution", "masks", "top_down", "winograd", "hue"]
GPU_KERNELS: tuple[Kernel, ...] = ("suppression", "roi_align", "convolution", "masks", "top_down")
CPU_KERNELS: tuple[Kernel, ...] = ("winograd", "roi_align")


def use_kernels(tensor: Tensor, kernel: Kernel) -> bool:
    """Whether a kernel of ours, rather than torch's operators, is to work on this tensor.

    Never within torch.compile, which makes kernels of its own.
    """
    if torch.compiler.is_compiling() or not tensor.is_cuda:
        return False
    return not without(kernel) and _work()


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


def without(kernel: Kernel) -> bool:
    """Whether it is switched off."""
    names = [name.strip() for name in os.environ.get(SWITCH, "").split(",")]
    return kernel in names or "all" in names


@cache
def _work() -> bool:
    """Whether Triton can compile and launch here: it needs a C compiler and a device that it knows."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        _try()
    except Exception as error:  # every stage of a compiler has its own
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        _LOGGER.warning(
            "Triton's kernels are left out, which costs a good part of the speed (%s); Triton needs a C compiler such "
            "as gcc, or set %s=all where none can be had",
            reason,
            SWITCH,
        )
        return False
    return True


def _try() -> None:
    """Launch the smallest kernel."""
    from maskrcnn_core.kernels.gpu.bias import add_bias_

    maps = torch.zeros(1, 16, 1, 1, device="cuda").contiguous(memory_format=torch.channels_last)
    if not bool((add_bias_(maps, torch.ones(16, device="cuda")) == 1).all()):
        raise RuntimeError("a kernel gave wrong numbers")
