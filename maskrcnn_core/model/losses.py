"""Losses, and their precision, shared by the RPN and the heads."""

import torch
from torch import Tensor
from torch.nn import functional


def full_precision(x: Tensor) -> Tensor:
    """Half-precision values as float32, for coordinates, scores and losses; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def smooth_l1_sum(predicted: Tensor, wanted: Tensor, counted: Tensor, beta: float) -> Tensor:
    """Sum of the smooth L1 loss over the counted boxes (Fast R-CNN, Eq. 3; beta as in Detectron).

    Args:
        predicted, wanted: [..., 4] deltas.
        counted: [...] bool; the other boxes add nothing, whatever they hold.
        beta: where the loss turns from square to linear; 0 = L1.
    """
    # Selected before the loss: an uncounted slot may hold anything, and 0 * inf would be nan.
    wanted = torch.where(counted[..., None], wanted, predicted.detach())
    if beta == 0:
        return (predicted - wanted).abs().sum()
    return functional.smooth_l1_loss(predicted, wanted, beta=beta, reduction="sum")
