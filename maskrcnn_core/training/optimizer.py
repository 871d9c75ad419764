"""Parameter groups, SGD with momentum or AdamW, and the learning rate as a function of the step."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(
    model: nn.Module, weight_decay: float, *, bias_decay: float = 0.0, norm_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Trainable parameters by weight decay: weights, biases (any other parameter with at most one axis), and the scales
    and shifts of norms. Those with equal decay share a group; frozen parameters are in none."""
    groups: dict[float, list[nn.Parameter]] = {weight_decay: []}
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                own_decay = (
                    norm_decay if isinstance(module, _NORMS) else weight_decay if parameter.ndim > 1 else bias_decay
                )
                groups.setdefault(own_decay, []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items() if parameters]


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    bias_decay: float = 0.0,
    norm_decay: float = 0.0,
    algorithm: Literal["sgd", "adamw"] = "sgd",
) -> torch.optim.Optimizer:
    """SGD as in the Mask R-CNN paper (Appendix), or AdamW (Loshchilov and Hutter, ICLR 2019); one fused kernel a step.

    Args:
        momentum: of SGD; of AdamW beta 1 (beta 2 is 0.999).

    Raises:
        ValueError: the model has no trainable parameter.
    """
    groups = parameter_groups(model, weight_decay, bias_decay=bias_decay, norm_decay=norm_decay)
    if not groups:
        raise ValueError("build_optimizer: the model has no trainable parameter; lower model.backbone.frozen_stages")
    if algorithm == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(momentum, 0.999), fused=True)
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
    # The warm-up grows towards whatever the schedule says at this step.
    if step < warmup_steps:
        rate *= warmup_factor + (1.0 - warmup_factor) * step / warmup_steps
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
