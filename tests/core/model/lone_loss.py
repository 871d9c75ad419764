"""A loss as one process divides it."""

from torch import Tensor

from maskrcnn_core.model.loss_counts import LossSum, divided, own_count


def lone_loss(loss: LossSum) -> Tensor:
    """Scalar: divided by its own count."""
    return divided({"loss": loss}, own_count)["loss"]
