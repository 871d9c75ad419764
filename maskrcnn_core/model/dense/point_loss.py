"""Losses of anchors that stand for the object around their centre (FCOS: Tian et al., ICCV 2019, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from maskrcnn_core.boxes import box_areas
from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.dense.focal_loss import all_outputs, boxes_of, focal_losses, labels_of
from maskrcnn_core.model.dense.head import DenseHead
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.losses import box_regression_losses, full_precision
from maskrcnn_core.model.matching import IGNORED, NEGATIVE, POSITIVE, Matches, without_crowds
from maskrcnn_core.structures import ImageFeatures, Targets, real_or_unit

# A level is responsible for objects whose farthest edge is within this many of its anchors' sides: 64 to 128 pixels at
# stride 16.
_NEAREST, _FARTHEST = 4, 8


@dataclass(frozen=True)
class PointLoss:
    """Focal loss of the classes, a box loss and the centreness of the positives.

    Attributes:
        crowd_overlap: a negative with more than this share of its area in a crowd region learns nothing.
        alpha, gamma: of `focal_losses`.
        centre_radius: of `assign_points`.
        smooth_l1_beta, box_loss: beta and type of `box_regression_losses`.
    """

    crowd_overlap: float
    alpha: float
    gamma: float
    centre_radius: float
    smooth_l1_beta: float
    box_loss: str

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
            `dense_class`, `dense_box`; `dense_centreness` where the head has it.
        """
        # Which anchors stand for which object: [N, A].
        all_anchors = torch.cat(list(anchors))
        matches = assign_points(anchors, targets, self.centre_radius)
        kinds = without_crowds(
            matches.kinds, all_anchors[None], targets, self.crowd_overlap, fixed_size=features.fixed_size
        )
        positive = kinds == POSITIVE
        count = positive.sum()
        outputs = head(features.maps)
        logits, deltas = all_outputs(outputs)
        # Classes of all but the ignored, boxes of the positives: [N, A].
        labels, boxes = labels_of(matches.objects, targets, logits.shape[2]), boxes_of(matches.objects, targets)
        class_losses = focal_losses(logits, labels, positive, alpha=self.alpha, gamma=self.gamma)
        references = all_anchors.expand_as(deltas)
        box_losses = box_regression_losses(
            deltas,
            references,
            boxes,
            positive,
            coding=coding,
            loss_type=self.box_loss,
            beta=self.smooth_l1_beta,
        )
        losses = {
            "dense_class": LossSum(torch.where(kinds != IGNORED, class_losses, 0.0).sum(), count),
            "dense_box": LossSum(box_losses.sum(), count),
        }
        if outputs.objectness is not None:
            wanted = centreness(real_or_unit(boxes, positive), real_or_unit(references, positive))
            each = functional.binary_cross_entropy_with_logits(
                full_precision(torch.cat(outputs.objectness, dim=1)), wanted, reduction="none"
            )
            losses["dense_centreness"] = LossSum(torch.where(positive, each, 0.0).sum(), count)
        return losses


def assign_points(anchors: Sequence[Tensor], targets: Targets, centre_radius: float) -> Matches:
    """Each anchor stands for the smallest object that its centre lies in, near the object's centre, if the object's
    size is for its level (sections 3.2 and 3.3; centre sampling as in the authors' code).

    Args:
        anchors: per level [A_l, 4], squares.
        targets: needs at least one slot (G >= 1).
        centre_radius: how far it may be from the object's centre in x and in y, in sides of the anchor.

    Returns:
        Every other anchor is negative.
    """
    every = torch.cat(list(anchors))
    x, y = (every[:, :2] + every[:, 2:]).mul(0.5).unbind(dim=1)  # [A]
    sides = every[:, 2] - every[:, 0]
    nearest, farthest = _NEAREST * sides, _FARTHEST * sides
    nearest[: len(anchors[0])] = 0.0
    farthest[len(every) - len(anchors[-1]) :] = torch.inf
    # Distances of each object's edges, and of its centre, from each anchor's: [N, G, A].
    x1, y1, x2, y2 = targets.boxes[..., None].unbind(dim=2)
    left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y
    shortest = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
    longest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
    from_centre = torch.maximum((x - 0.5 * (x1 + x2)).abs(), (y - 0.5 * (y1 + y2)).abs())
    fits = (from_centre < centre_radius * sides) & (shortest > 0) & (longest > nearest) & (longest < farthest)
    # The smallest of those that fit: [N, A].
    areas = torch.where(fits & targets.valid[..., None], box_areas(targets.boxes)[..., None], torch.inf)
    smallest, objects = areas.min(dim=1)
    return Matches(torch.where(smallest < torch.inf, POSITIVE, NEGATIVE), objects)


def centreness(boxes: Tensor, references: Tensor) -> Tensor:
    """How central the centre of each reference is in its box (Eq. 3): [..., 4], [..., 4] -> [...] in [0, 1].

    1 in the middle, 0 at an edge; the centre must not lie outside.
    """
    centres = 0.5 * (references[..., :2] + references[..., 2:])
    before, after = centres - boxes[..., :2], boxes[..., 2:] - centres
    nearer, farther = torch.minimum(before, after), torch.maximum(before, after)
    return (nearer / farther).prod(dim=-1).sqrt()
