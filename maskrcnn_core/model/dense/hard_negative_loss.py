"""Losses of the positives and of the hardest negatives (SSD: Liu et al., ECCV 2016, section 2.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from maskrcnn_core.boxes import pairwise_iou
from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.dense.focal_loss import all_outputs, boxes_of
from maskrcnn_core.model.dense.head import DenseHead
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.losses import box_regression_losses
from maskrcnn_core.model.matching import NEGATIVE, POSITIVE, Matches, match
from maskrcnn_core.structures import ImageFeatures, Targets


@dataclass(frozen=True)
class HardNegativeLoss:
    """Class loss of all positives and a few times as many negatives, those with the highest loss in their image; box
    loss of the positives. Both sums are divided by the positives of the batch.

    Attributes:
        positive_overlap: IoU from which an anchor is positive; the best anchor of each object always stands for it.
        crowd_overlap: a negative with more than this share of its area in a crowd region learns nothing.
        negatives_per_positive: negatives that are learnt from, of each image.
        softmax: logits are of K classes and the background, which compete; else each of K classes is by itself.
        smooth_l1_beta, box_loss: beta and type of `box_regression_losses`.
    """

    positive_overlap: float
    crowd_overlap: float
    negatives_per_positive: float
    softmax: bool
    smooth_l1_beta: float
    box_loss: str = "smooth_l1"

    def __call__(
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
            negative_overlap=self.positive_overlap,
            rescue_best=False,
            crowd_overlap=self.crowd_overlap,
            fixed_size=features.fixed_size,
        )
        matches = with_best_anchors(matches, all_anchors, targets)
        positive = matches.kinds == POSITIVE
        logits, deltas = all_outputs(head(features.maps))
        # The class loss of each anchor, and of the negatives those with the highest.
        class_losses = self._class_losses(logits, targets.labels.gather(1, matches.objects), positive)
        wanted = self.negatives_per_positive * positive.sum(dim=1)
        learnt = positive | hardest(class_losses.detach(), matches.kinds == NEGATIVE, wanted)
        box_losses = box_regression_losses(
            deltas,
            all_anchors.expand_as(deltas),
            boxes_of(matches.objects, targets),
            positive,
            coding=coding,
            loss_type=self.box_loss,
            beta=self.smooth_l1_beta,
        )
        count = positive.sum()
        return {
            "dense_class": LossSum(torch.where(learnt, class_losses, 0.0).sum(), count),
            "dense_box": LossSum(box_losses.sum(), count),
        }

    def _class_losses(self, logits: Tensor, labels: Tensor, positive: Tensor) -> Tensor:
        """[N, A] of logits [N, A, K] or [N, A, K + 1] and the labels [N, A] of positives."""
        if self.softmax:
            labels = torch.where(positive, labels, logits.shape[2] - 1)
            return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        labels = labels if logits.shape[2] > 1 else torch.zeros_like(labels)
        # As if there were nothing; then, at the positives, the class that is there.
        there = logits.gather(2, labels[..., None])[..., 0]
        return functional.softplus(logits).sum(dim=2) - torch.where(positive, there, 0.0)


def with_best_anchors(matches: Matches, anchors: Tensor, targets: Targets) -> Matches:
    """The same matches, but that of each object the anchor with the highest IoU is positive and stands for it, whatever
    else it overlaps; of two objects with one best anchor the later one has it.

    Args:
        anchors: [A, 4].
    """
    overlaps = pairwise_iou(targets.boxes, anchors[None]).masked_fill(~targets.valid[..., None], 0.0)  # [N, G, A]
    best, index = overlaps.max(dim=2)
    # For each object [N, G] its anchor; one that is not real, or overlaps nothing, points behind the last anchor.
    index = torch.where(best > 0, index, anchors.shape[0])
    owners = matches.kinds.new_full((len(index), anchors.shape[0] + 1), -1)
    slots = torch.arange(index.shape[1], device=index.device).expand_as(index)
    owners = owners.scatter_reduce(1, index, slots, "amax")[:, :-1]
    return Matches(torch.where(owners >= 0, POSITIVE, matches.kinds), torch.where(owners >= 0, owners, matches.objects))


def hardest(losses: Tensor, candidates: Tensor, wanted: Tensor) -> Tensor:
    """[N, A] bool: of each image's candidates the `wanted` ones with the highest losses.

    Args:
        losses: [N, A]; candidates: [N, A] bool; wanted: [N], may be a fraction, which is rounded up.
    """
    order = torch.where(candidates, losses, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return candidates & (ranks < wanted[:, None])
