"""Updates that leave the weights alone where a gradient is not finite, without the host waiting for a GPU to say so."""

import torch
from torch import Tensor


def update_if_finite(optimizer: torch.optim.Optimizer, grad_norm: Tensor) -> Tensor:
    """One step of the optimizer, unless the norm of all gradients is infinite or not a number.

    The norm of averaged gradients is the same on every process, so all of them step or none.

    Args:
        grad_norm: scalar, before clipping.

    Returns:
        Scalar bool, true where the step was left out; neither weights nor the optimizer's state have changed then.
    """
    skipped = ~torch.isfinite(grad_norm)
    # Without a fused kernel on a GPU the host has to know, and asks.
    if not (skipped.is_cuda and optimizer.defaults.get("fused")):
        if not bool(skipped):
            optimizer.step()
        return skipped
    _start_momentum(optimizer)
    # Fused kernels read this attribute on the device (torch.amp.GradScaler sets it likewise).
    optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
    return skipped


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Fused SGD makes its buffers in the first step, and leaves them unset where that is skipped; zeros are the same
    beginning."""
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
        for parameter in group["params"] if group["momentum"] else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
