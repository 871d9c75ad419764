"""Losses of all anchors, the easy ones with little weight (RetinaNet: Lin et al., ICCV 2017, section 3)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.dense.head import DenseHead
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.losses import box_regression_losses, full_precision
from maskrcnn_core.model.matching import IGNORED, POSITIVE, match
from maskrcnn_core.structures import DenseOutputs, ImageFeatures, Targets

FIRST_AVERAGE = 100.0
"""Where the moving average of positives begins."""

# What of it a step keeps.
_KEPT = 0.9


class FocalLoss(nn.Module):
    """Focal loss of the classes, and a box loss of the positives.

    Args:
        positive_overlap, negative_overlap: IoU from which an anchor is positive, below which it is negative; of those
            between, that learn nothing, the best of each object are positive, too.
        crowd_overlap: a negative with more than this share of its area in a crowd region learns nothing.
        alpha, gamma: of `focal_losses`.
        divisor: of both sums: "image" = the positives of each image, then the mean over images (torchvision); "batch" =
            the positives of the batch; "average" = a moving average of these (detectron2).
        smooth_l1_beta, box_loss: beta and type of `box_regression_losses`.
    """

    averages: Tensor

    def __init__(
        self,
        *,
        positive_overlap: float,
        negative_overlap: float,
        crowd_overlap: float,
        alpha: float,
        gamma: float,
        divisor: str,
        smooth_l1_beta: float,
        box_loss: str,
    ) -> None:
        super().__init__()
        self.positive_overlap, self.negative_overlap = positive_overlap, negative_overlap
        self.crowd_overlap, self.divisor = crowd_overlap, divisor
        self.alpha, self.gamma = alpha, gamma
        self.smooth_l1_beta, self.box_loss = smooth_l1_beta, box_loss
        if divisor == "average":
            self.register_buffer("averages", torch.full((2,), FIRST_AVERAGE))

    def forward(
        self,
        head: DenseHead,
        features: ImageFeatures,
        anchors: Sequence[Tensor],
        coding: BoxCoding,
        targets: Targets,
    ) -> dict[str, LossSum]:
        """See `DenseLoss`.

        Returns:
            `dense_class` and `dense_box`.
        """
        # Which anchors stand for which object: [N, A].
        all_anchors = torch.cat(list(anchors))
        matches = match(
            all_anchors[None],
            targets,
            positive_overlap=self.positive_overlap,
            negative_overlap=self.negative_overlap,
            rescue_best=True,
            crowd_overlap=self.crowd_overlap,
            fixed_size=features.fixed_size,
        )
        positive = matches.kinds == POSITIVE
        logits, deltas = all_outputs(head(features.maps))
        # Classes of all but the ignored, boxes of the positives: [N, A].
        labels = labels_of(matches.objects, targets, logits.shape[2])
        class_losses = focal_losses(logits, labels, positive, alpha=self.alpha, gamma=self.gamma)
        box_losses = box_regression_losses(
            deltas,
            all_anchors.expand_as(deltas),
            boxes_of(matches.objects, targets),
            positive,
            coding=coding,
            loss_type=self.box_loss,
            beta=self.smooth_l1_beta,
        )
        class_losses = torch.where(matches.kinds != IGNORED, class_losses, 0.0)
        sums = {"dense_class": class_losses.sum(dim=1), "dense_box": box_losses.sum(dim=1)}
        return self._divided(sums, positive.sum(dim=1))

    def _divided(self, sums: Mapping[str, Tensor], positives: Tensor) -> dict[str, LossSum]:
        """Sums and numbers of positives of each image, [N] -> what the detector divides."""
        if self.divisor == "batch":
            return {name: LossSum(each.sum(), positives.sum()) for name, each in sums.items()}
        if self.divisor == "image":
            images = torch.ones_like(positives).sum()
            return {name: LossSum((each / positives.clamp(min=1)).sum(), images) for name, each in sums.items()}
        count = positives.sum()
        return {
            name: LossSum(each.sum(), count, smoothed=partial(self._smoothed, row))
            for row, (name, each) in enumerate(sums.items())
        }

    @torch.no_grad()
    def _smoothed(self, row: int, positives: Tensor) -> Tensor:
        """The average with the positives of one more batch, while training; one row for each loss."""
        if self.training:
            self.averages[row] = _KEPT * self.averages[row] + (1 - _KEPT) * positives
        return self.averages[row].clone()


def all_outputs(outputs: DenseOutputs) -> tuple[Tensor, Tensor]:
    """Logits [N, A, K] and deltas [N, A, 4] of the anchors of all levels."""
    return full_precision(torch.cat(outputs.logits, dim=1)), full_precision(torch.cat(outputs.deltas, dim=1))


def labels_of(objects: Tensor, targets: Targets, num_classes: int) -> Tensor:
    """[N, A] labels of the objects [N, A] that anchors stand for; 0 where the head tells no classes apart."""
    return targets.labels.gather(1, objects) if num_classes > 1 else torch.zeros_like(objects)


def boxes_of(objects: Tensor, targets: Targets) -> Tensor:
    """[N, A, 4] boxes of the objects [N, A] that anchors stand for."""
    return targets.boxes.gather(1, objects[..., None].expand(-1, -1, 4))


def focal_losses(logits: Tensor, labels: Tensor, positive: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Focal loss of each anchor, the sum over its classes (Eq. 5): [N, A].

    Args:
        logits: [N, A, K] float32.
        labels: [N, A] int64, the class that a positive anchor has; of the others any class.
        positive: [N, A] bool.
        alpha: weight of the class that is there; 1 - alpha of those that are not.
        gamma: how fast the weight falls with the certainty.
    """
    # As if there were nothing; then, at the positives, the class that is there.
    absent = _AbsentLosses.apply(logits, gamma)
    there = logits.gather(2, labels[..., None])[..., 0]
    log_there, log_absent = functional.logsigmoid(there), functional.logsigmoid(-there)
    present = -alpha * torch.exp(gamma * log_absent) * log_there
    not_so = -(1 - alpha) * torch.exp(gamma * log_there) * log_absent
    each: Tensor = (1 - alpha) * absent + torch.where(positive, present - not_so, 0.0)
    return each


class _AbsentLosses(torch.autograd.Function):
    """sum over K of sigmoid(x)^gamma * softplus(x): [N, A, K] -> [N, A]. Nothing but the logits is kept for the
    gradient; a dozen tensors of their size, some gigabytes, would be otherwise."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, gamma: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.gamma = gamma
        # sigmoid^gamma as an exponential, whose slope is finite at 0.
        return (functional.logsigmoid(logits).mul_(gamma).exp_() * functional.softplus(logits)).sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        (gradient,) = gradients
        there = logits.sigmoid()
        slope = (1 - there).mul_(ctx.gamma).mul_(functional.softplus(logits)).add_(there)
        slope.mul_(functional.logsigmoid(logits).mul_(ctx.gamma).exp_())
        return slope.mul_(gradient[..., None]), None
