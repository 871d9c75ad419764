"""Parameter groups, SGD with momentum, and the learning rate as a function of the step."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weights, which decay, and biases and norms, which do not.

    Biases and norms are those with at most one axis. Frozen parameters are in neither group.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, *, learning_rate: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD as in the Mask R-CNN paper (Appendix), one fused kernel per step.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    groups = parameter_groups(model, weight_decay)
    if not groups:
        raise ValueError("build_optimizer: the model has no trainable parameter; lower model.backbone.frozen_stages")
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, fused=True)


def learning_rate(
    step: int,
    *,
    peak: float,
    steps: int,
    warmup_steps: int,
    warmup_factor: float,
    schedule: Literal["step", "cosine"],
    decay_steps: Sequence[int] = (),
    decay_factor: float = 0.1,
) -> float:
    """Learning rate of the optimisation step `step` (from 0).

    Linear from `warmup_factor` x `peak` at step 0 to the schedule's value at `warmup_steps` (Goyal et al. 2017, 2.2);
    then `step`: `peak` x `decay_factor` for each of `decay_steps` reached; or `cosine`: half a cosine from `peak` at
    `warmup_steps` to 0 at `steps` (Loshchilov and Hutter, ICLR 2017, Eq. 5).
    """
    if schedule == "cosine":
        progress = max(0, step - warmup_steps) / max(1, steps - warmup_steps)
        rate = peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    else:
        rate = peak * decay_factor ** sum(step >= decay_step for decay_step in decay_steps)
    if step < warmup_steps:
        rate *= warmup_factor + (1.0 - warmup_factor) * step / warmup_steps
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
