"""YOLOv2's loss: each object teaches the prior of its cell whose shape is nearest (section 2; Darknet's region layer).

Darknet writes gradients, not losses: target minus output on what goes into the sigmoids and the softmax. The losses
with these gradients are cross entropies and half squares.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.boxes import box_areas, pairwise_iou
from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.dense.focal_loss import all_outputs, boxes_of, labels_of
from maskrcnn_core.model.dense.head import DenseHead
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.model.matching import IGNORED, NEGATIVE, without_crowds
from maskrcnn_core.structures import ImageFeatures, Targets, real_or_unit

_EDGE = 1e-6


class CellLoss(nn.Module):
    """Losses of classes, boxes and objectness; sums over an image, means over images.

    Args:
        ignore_overlap: a box that is no object's, but has more than this IoU with one, is not told that it is none.
        crowd_overlap: nor is one with more than this share of its area in a crowd region.
        object_weight, empty_weight: of the objectness of boxes that are an object's and of those that are not.
        box_weight, class_weight: of the other losses.
        warm_up_images: during so many first images every box is also drawn towards its prior; 0 = never.
        warm_up_weight: of that.
    """

    seen: Tensor

    def __init__(
        self,
        *,
        ignore_overlap: float,
        crowd_overlap: float,
        object_weight: float,
        empty_weight: float,
        box_weight: float,
        class_weight: float,
        warm_up_images: int = 0,
        warm_up_weight: float = 0.01,
    ) -> None:
        super().__init__()
        self.ignore_overlap, self.crowd_overlap = ignore_overlap, crowd_overlap
        self.object_weight, self.empty_weight = object_weight, empty_weight
        self.box_weight, self.class_weight = box_weight, class_weight
        self.warm_up_images, self.warm_up_weight = warm_up_images, warm_up_weight
        if warm_up_images:
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        head: DenseHead,
        features: ImageFeatures,
        anchors: Sequence[Tensor],
        coding: BoxCoding,
        targets: Targets,
    ) -> dict[str, LossSum]:
        """See `DenseLoss`; one level.

        Returns:
            `dense_class`, `dense_box` and `dense_objectness`.
        """
        (priors,) = anchors
        outputs = head(features.maps)
        logits, deltas = all_outputs(outputs)
        assert outputs.objectness is not None
        objectness = full_precision(torch.cat(outputs.objectness, dim=1))
        # Which priors are whose: [N, A].
        owned, objects = assign_cells(priors, targets, features.maps[0].shape[2:], features.strides[0])
        wanted = real_or_unit(boxes_of(objects, targets), owned)
        # How well what is predicted now fits, for what the objectness should say.
        with torch.no_grad():
            boxes = coding.decode(deltas, priors)
            best = torch.where(targets.valid[:, None], pairwise_iou(boxes, targets.boxes), 0.0).amax(dim=2)
            kinds = torch.where(best > self.ignore_overlap, IGNORED, NEGATIVE)
            kinds = without_crowds(kinds, boxes, targets, self.crowd_overlap, fixed_size=features.fixed_size)
            own = paired_iou(boxes, wanted)
        # Objectness: the IoU where a box is an object's, nothing elsewhere, unless it nearly is one.
        weights = torch.where(kinds == NEGATIVE, self.empty_weight, 0.0)
        weights = torch.where(owned, self.object_weight, weights)
        told = torch.where(owned, own, 0.0)
        each = functional.binary_cross_entropy_with_logits(objectness, told, reduction="none")
        # Boxes: small ones count up to twice; classes of the owned.
        height, width = features.input_shape
        scale = self.box_weight * (2 - box_areas(wanted) / (height * width))
        box_losses = torch.where(owned, scale * code_losses(deltas, coding.encode(wanted, priors)), 0.0)
        labels = labels_of(objects, targets, logits.shape[2])
        class_losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        box_sum = box_losses.sum()
        if self.warm_up_images and self.training:
            box_sum = box_sum + self._towards_priors(deltas, coding.encode(priors, priors), owned)
        images = torch.ones_like(objects[:, 0]).sum()
        return {
            "dense_class": LossSum(
                self.class_weight * torch.where(owned, class_losses.view_as(each), 0.0).sum(), images
            ),
            "dense_box": LossSum(box_sum, images),
            "dense_objectness": LossSum((weights * each).sum(), images),
        }

    def _towards_priors(self, deltas: Tensor, codes: Tensor, owned: Tensor) -> Tensor:
        """The warm-up's loss, 0 once it is over; counts the images of this process."""
        with torch.no_grad():
            self.seen += len(deltas)
            weight = torch.where(self.seen <= self.warm_up_images, self.warm_up_weight, 0.0)
        return weight * torch.where(owned, 0.0, code_losses(deltas, codes.expand_as(deltas))).sum()


def assign_cells(priors: Tensor, targets: Targets, shape: Sequence[int], cell: int) -> tuple[Tensor, Tensor]:
    """The prior of each object: of those in the cell of its centre that with the most similar shape.

    Args:
        priors: [A, 4] of all cells, cell by cell.
        targets: needs at least one slot (G >= 1).
        shape: (height, width) of the map.
        cell: side of a cell, input pixels.

    Returns:
        [N, A] whether it is some object's, and that object's number; of two objects of one prior the later has it.
    """
    per_cell = len(priors) // (shape[0] * shape[1])
    # IoU of sizes with one centre: [N, G, per_cell].
    sides = (priors[:per_cell, 2:] - priors[:per_cell, :2]).clamp(min=_EDGE)
    own = (targets.boxes[..., 2:] - targets.boxes[..., :2]).clamp(min=_EDGE)[..., None, :]
    both = torch.minimum(own, sides).prod(dim=-1)
    nearest = (both / (own.prod(dim=-1) + sides.prod(dim=-1) - both)).argmax(dim=-1)
    index = cells_of(targets.boxes, shape, cell) * per_cell + nearest
    return last_claims(index, targets.valid, len(priors))


def cells_of(boxes: Tensor, shape: Sequence[int], cell: int) -> Tensor:
    """[..., 4] -> [...] int64, the cell that the centre of a box lies in, row by row; a cell's side is `cell`."""
    height, width = shape
    centres = 0.5 * (boxes[..., :2] + boxes[..., 2:])
    column = (centres[..., 0] / cell).long().clamp(0, width - 1)
    row = (centres[..., 1] / cell).long().clamp(0, height - 1)
    return row * width + column


def last_claims(slots: Tensor, valid: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Who has each of `number` slots: the last of those that claim it.

    Args:
        slots: [N, G] int64, what each claims.
        valid: [N, G] bool, whether it may.

    Returns:
        [N, number] whether somebody has it, and who.
    """
    # Whoever may not claims a slot behind all others.
    slots = torch.where(valid, slots, number)
    claimants = torch.arange(1, slots.shape[1] + 1, device=slots.device).expand_as(slots)
    owners = claimants.new_zeros(len(slots), number + 1).scatter_reduce(1, slots, claimants, "amax")[:, :-1]
    return owners > 0, (owners - 1).clamp(min=0)


def code_losses(deltas: Tensor, codes: Tensor) -> Tensor:
    """[..., 4] output and wanted code of `CellCoding` -> [...]: cross entropy of the centre, half the square of the
    difference of the logarithms of the sides."""
    centre = functional.binary_cross_entropy_with_logits(deltas[..., :2], codes[..., :2].sigmoid(), reduction="none")
    sides = 0.5 * (deltas[..., 2:] - codes[..., 2:]).square()
    return centre.sum(dim=-1) + sides.sum(dim=-1)


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes one by one: [..., 4], [..., 4] -> [...]."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    both = (high - low).clamp(min=0).prod(dim=-1)
    return both / (box_areas(first) + box_areas(second) - both).clamp(min=_EDGE)
