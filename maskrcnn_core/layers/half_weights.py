"""Weights that autocast would round at every call, rounded once."""

import torch
from torch import Tensor, nn

# Smaller layers cost nothing to round, and some of them are used by hand outside of autocast's operators.
_LARGE = 1 << 16


def is_large(weight: Tensor) -> bool:
    """Whether a layer's weight is worth rounding once."""
    return weight.numel() >= _LARGE


def round_large_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Store the large convolutions and fully connected layers of a network, in place, in the type that autocast
    computes in. The same results with less to read: autocast reads, rounds and writes all weights for each batch.

    Args:
        network: for inference under `torch.autocast` with this type.
        dtype: torch.bfloat16 or torch.float16.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and is_large(module.weight):
            module.to(dtype)
