"""MultiBox's loss: every object teaches one anchor, whose the others are not (DeepMultiBox: Erhan et al., CVPR 2014,
section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from maskrcnn_core.model.bipartite_matching import assign_one_to_one
from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.dense.focal_loss import all_outputs, boxes_of, labels_of
from maskrcnn_core.model.dense.head import DenseHead
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.matching import IGNORED, NEGATIVE, POSITIVE, Matches, without_crowds
from maskrcnn_core.structures import ImageFeatures, Targets, real_or_unit


@dataclass(frozen=True)
class AssignedLoss:
    """Logarithmic loss of the confidences of all anchors, and half the squares of the assigned boxes' errors; sums over
    an image, means over images.

    Attributes:
        crowd_overlap: an anchor of no object with more than this share of its area in a crowd region learns nothing.
        box_weight, class_weight: of the losses; MultiBox's alpha is the first, .3 with a class weight of 1.
    """

    crowd_overlap: float
    box_weight: float
    class_weight: float

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
        # Which anchor is whose: [N, A].
        all_anchors = torch.cat(list(anchors))
        matches = assigned(all_anchors, targets, coding, self.crowd_overlap, fixed_size=features.fixed_size)
        positive = matches.kinds == POSITIVE
        logits, deltas = all_outputs(head(features.maps))
        # Confidences of all but the ignored, each class by itself.
        labels = labels_of(matches.objects, targets, logits.shape[2])
        there = logits.gather(2, labels[..., None])[..., 0]
        class_losses = functional.softplus(logits).sum(dim=2) - torch.where(positive, there, 0.0)
        # Boxes of the assigned.
        codes = coding.encode(real_or_unit(boxes_of(matches.objects, targets), positive), all_anchors)
        box_losses = 0.5 * (deltas - codes).square().sum(dim=2)
        images = torch.ones_like(matches.objects[:, 0]).sum()
        return {
            "dense_class": LossSum(
                self.class_weight * torch.where(matches.kinds != IGNORED, class_losses, 0.0).sum(), images
            ),
            "dense_box": LossSum(self.box_weight * torch.where(positive, box_losses, 0.0).sum(), images),
        }


def assigned(
    anchors: Tensor, targets: Targets, coding: BoxCoding, crowd_overlap: float, *, fixed_size: bool = False
) -> Matches:
    """One anchor for each object, so that they are nearest in all: distances are between codes, from an anchor's own to
    the object's ("prior matching", section 3.3). The assignment does not depend on what is predicted.

    Args:
        anchors: [A, 4].
        targets: needs at least one slot (G >= 1).
        coding: of the head's outputs.
        crowd_overlap: as of `AssignedLoss`.
    """
    references = anchors[None, None]
    boxes = real_or_unit(targets.boxes, targets.valid)[:, :, None]
    distances = (coding.encode(boxes, references) - coding.encode(references, references)).square().sum(dim=3)
    owned, objects = assign_one_to_one(distances, targets.valid, fixed_size=fixed_size)
    kinds = torch.where(owned, POSITIVE, NEGATIVE)
    return Matches(without_crowds(kinds, anchors[None], targets, crowd_overlap, fixed_size=fixed_size), objects)
