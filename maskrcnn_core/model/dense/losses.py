"""What a dense head learns by: the form of every loss, and that of a Region Proposal Network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.dense.head import DenseHead
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.losses import box_regression_loss, full_precision
from maskrcnn_core.model.matching import match, sample
from maskrcnn_core.structures import ImageFeatures, Targets


class DenseLoss(Protocol):
    """Losses of a dense stage. It is given the head, not the head's outputs: one that samples needs only `at`."""

    def __call__(
        self,
        head: DenseHead,
        features: ImageFeatures,
        anchors: Sequence[Tensor],
        coding: BoxCoding,
        targets: Targets,
    ) -> dict[str, LossSum]:
        """Losses by name.

        Args:
            anchors: per level [A_l, 4].
            coding: of the head's deltas.
        """
        ...


@dataclass(frozen=True)
class SampledLoss:
    """Losses of a few hundred anchors drawn at random (Faster R-CNN, sections 3.1.2 and 3.1.3).

    Attributes:
        positive_overlap, negative_overlap: IoU from which an anchor is positive, below which it is negative.
        batch_size, positive_fraction: anchors drawn of an image, and the positives' most.
        crowd_overlap: a negative with more than this share of its area in a crowd region is not drawn.
        smooth_l1_beta, box_loss: beta and type of `box_regression_loss`.
    """

    positive_overlap: float
    negative_overlap: float
    batch_size: int
    positive_fraction: float
    crowd_overlap: float
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
        """Objectness loss over the sampled anchors; box loss over the positives, counted by the sampled anchors too.

        Returns:
            `rpn_objectness` and `rpn_box`.
        """
        # Which anchors stand for which object, and which of them are drawn: [N, S].
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
        samples = sample(matches.kinds, self.batch_size, self.positive_fraction, targets.seeds)
        num_sampled = samples.valid.sum()
        # The head at these anchors alone.
        logits, deltas = (full_precision(output) for output in head.at(features.maps, samples.index))
        objectness = functional.binary_cross_entropy_with_logits(
            logits[..., 0], samples.positive.to(logits.dtype), reduction="none"
        )
        # Boxes of the positives, which stand in front.
        front = slice(0, max(samples.max_positives, 1))
        index, positive = samples.index[:, front], samples.positive[:, front]
        objects = matches.objects.gather(1, index)
        box_loss = box_regression_loss(
            deltas[:, front],
            all_anchors[index],
            targets.boxes.gather(1, objects[..., None].expand(-1, -1, 4)),
            positive,
            coding=coding,
            loss_type=self.box_loss,
            beta=self.smooth_l1_beta,
        )
        return {
            "rpn_objectness": LossSum((objectness * samples.valid).sum(), num_sampled),
            "rpn_box": LossSum(box_loss, num_sampled),
        }
