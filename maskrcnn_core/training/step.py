"""One optimisation step."""

import functools
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskrcnn_core.model.loss_counts import Normalizer, own_count
from maskrcnn_core.structures import ImageBatch, Proposals, Targets
from maskrcnn_core.training.accumulation import accumulate_gradients
from maskrcnn_core.training.finite_update import update_if_finite
from maskrcnn_core.training.optimizer import set_learning_rate


@dataclass(frozen=True)
class StepResult:
    """What one step computed, still on the device: reading it there would stall the next step.

    Attributes:
        names: names of the losses.
        losses: [len(names)] float32, detached.
        grad_norm: scalar, L2 norm of all gradients before clipping; None where nothing asked for it.
        learning_rate: rate that the step used.
        skipped: scalar bool, the gradients were not finite and the weights stayed; None where nothing looked.
    """

    names: tuple[str, ...]
    losses: Tensor
    grad_norm: Tensor | None
    learning_rate: float
    skipped: Tensor | None = None


def training_step(
    detector: nn.Module,
    images: ImageBatch,
    targets: Targets,
    optimizer: torch.optim.Optimizer,
    *,
    learning_rate: float,
    clip_norm: float = 0.0,
    bfloat16: bool = False,
    with_grad_norm: bool = False,
    skip_non_finite: bool = False,
    proposals: Proposals | None = None,
    accumulate: int = 1,
    count: Normalizer = own_count,
) -> StepResult:
    """Forward, backward and update.

    Args:
        detector: in train mode; called with (images, targets), and the proposals where there are some, gives a
            dictionary of scalar losses, divided by what its argument `count` says.
        images, targets, proposals: on the detector's device.
        clip_norm: upper limit of the gradients' L2 norm; 0 = none.
        bfloat16: run the forward pass under autocast.
        with_grad_norm: measure the norm also where it is not clipped.
        accumulate: pieces in which the batch is computed, see `accumulation`.
        count: what sums of losses are divided by, see `loss_counts`.
        skip_non_finite: leave the weights as they are where a gradient is not finite (the norm is measured).
    """
    autocast = functools.partial(torch.autocast, images.pixels.device.type, dtype=torch.bfloat16, enabled=bfloat16)
    # Rate of this step, and no gradient left of the one before.
    set_learning_rate(optimizer, learning_rate)
    optimizer.zero_grad(set_to_none=True)
    # Forward and backward: in pieces, each of which runs its own backward, or at once.
    if accumulate > 1:
        losses = accumulate_gradients(
            detector, images, targets, proposals, pieces=accumulate, count=count, context=autocast
        )
        stacked = torch.stack([loss.float() for loss in losses.values()])
    else:
        with autocast():
            given = (images, targets) if proposals is None else (images, targets, proposals)
            losses = detector(*given, count=count)
        stacked = torch.stack([loss.float() for loss in losses.values()])
        stacked.sum().backward()
    # The norm before clipping, for whoever clips, shows or judges it.
    grad_norm = None
    if clip_norm > 0 or with_grad_norm or skip_non_finite:
        limit = clip_norm if clip_norm > 0 else float("inf")
        grad_norm = clip_gradients(optimizer, limit)
    # Update, unless the norm says that a gradient is not finite.
    skipped = None
    if skip_non_finite and grad_norm is not None:
        skipped = update_if_finite(optimizer, grad_norm)
    else:
        optimizer.step()
    return StepResult(tuple(losses), stacked.detach(), grad_norm, learning_rate, skipped)


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float) -> Tensor:
    """Scale all gradients so that their common L2 norm is at most `limit`; returns the norm before."""
    # One norm over every parameter that has a gradient.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    # An infinite limit only measures.
    if limit != float("inf"):
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def seed_step(seed: int, step: int, rank: int) -> None:
    """Set torch's default generators from the run's seed, the step and the rank.

    The detector samples anchors and regions from them. With the state a function of the step, a resumed run draws the
    same numbers as an unbroken one, and no generator state needs to be stored.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
