"""Whether torch.compile can work here, found out before a run starts on it.

torch compiles when a function is first called, and then says that it cannot with pages from inside its compiler. On a
CPU it needs a C++ compiler, on a GPU Triton and a C compiler.
"""

import torch
from torch import Tensor

from maskrcnn_core.errors import ConfigError


def check_compiler(device: torch.device) -> None:
    """Compile a small function and run it (seconds).

    Raises:
        ConfigError: torch cannot compile for this device on this machine; says why, in one line.
    """
    x = torch.arange(4.0, device=device)
    try:
        torch.compile(_probe)(x)
    except Exception as error:  # every stage of the compiler has its own
        raise ConfigError(
            f"train.compile: torch cannot compile for {device.type} on this machine ({_reason(error)}); install "
            f"{'a C++ compiler such as g++' if device.type == 'cpu' else 'Triton and a C compiler'}, or set "
            "train.compile to false"
        ) from error


def _probe(x: Tensor) -> Tensor:
    return (x * 2.0 + 1.0).relu()


def _reason(error: BaseException) -> str:
    """The first line of the innermost error's text."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return text.partition("\n")[0] if text else type(error).__name__
