"""Whether Triton's kernels run here: on a CUDA device, where Triton is installed, unless they are switched off."""

import importlib.util
import os
from functools import cache

from torch import Tensor

SWITCH = "MASKRCNN_KERNELS"
"""Environment variable; 0 = torch's and torchvision's operators alone, for comparison and where Triton fails."""


def use_kernels(tensor: Tensor) -> bool:
    """Whether a kernel of ours, rather than torch's operators, is to work on this tensor."""
    return tensor.is_cuda and _installed() and os.environ.get(SWITCH, "1") != "0"


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
