"""YOLOv1's loss: squared errors of the cells that hold an object's centre (section 2.2; Darknet's detection layer)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from maskrcnn_core.model.box_coding import BoxCoding
from maskrcnn_core.model.dense.cell_loss import cells_of, last_claims, paired_iou
from maskrcnn_core.model.dense.focal_loss import all_outputs
from maskrcnn_core.model.dense.head import DenseHead
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.structures import ImageFeatures, Targets, real_or_unit


@dataclass(frozen=True)
class GridLoss:
    """Squared errors of classes, boxes and confidences; sums over an image, means over images.

    A cell learns one object, the last one whose centre lies in it. Of the cell's boxes that with the highest IoU is
    responsible; where none overlaps it, that whose sides and centre are nearest.

    Attributes:
        object_weight, empty_weight: of the confidence of responsible boxes and of all others.
        box_weight, class_weight: of the other losses.
    """

    object_weight: float
    empty_weight: float
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
        """See `DenseLoss`; one level.

        Returns:
            `dense_class`, `dense_box` and `dense_objectness`.
        """
        (priors,) = anchors
        height, width = features.maps[0].shape[2:]
        outputs = head(features.maps)
        logits, deltas = all_outputs(outputs)
        assert outputs.objectness is not None
        confidence = full_precision(outputs.objectness[0])
        # The object of each cell: [N, cells].
        cells = height * width
        claimed = cells_of(targets.boxes, (height, width), features.strides[0])
        owned, objects = last_claims(claimed, targets.valid, cells)
        references = priors.view(1, cells, -1, 4)
        deltas = deltas.unflatten(1, (cells, -1))
        confidence = confidence.unflatten(1, (cells, -1))
        logits = logits.unflatten(1, (cells, -1))[:, :, 0]  # those of a cell are the same for all of its boxes
        wanted = real_or_unit(targets.boxes.gather(1, objects[..., None].expand(-1, -1, 4)), owned)[:, :, None]
        # Which box is responsible: [N, cells, boxes of a cell].
        codes = coding.encode(wanted, references)
        with torch.no_grad():
            boxes = coding.decode(deltas, references)
            overlap = paired_iou(boxes, wanted.expand_as(boxes))
            distance = _distances(boxes, wanted, references)
            none = overlap.amax(dim=2, keepdim=True) <= 0
            chosen = torch.where(none, -distance, overlap).argmax(dim=2)
            responsible = functional.one_hot(chosen, boxes.shape[2]).bool() & owned[..., None]
        # Confidence: the IoU of the responsible box, nothing of the others.
        told = torch.where(responsible, overlap, 0.0)
        weights = torch.where(responsible, self.object_weight, self.empty_weight)
        box_losses = torch.where(responsible, (deltas - codes).square().sum(dim=-1), 0.0)
        labels = functional.one_hot(targets.labels.gather(1, objects), logits.shape[-1])
        class_losses = torch.where(owned, (logits - labels).square().sum(dim=-1), 0.0)
        images = torch.ones_like(objects[:, 0]).sum()
        return {
            "dense_class": LossSum(self.class_weight * class_losses.sum(), images),
            "dense_box": LossSum(self.box_weight * box_losses.sum(), images),
            "dense_objectness": LossSum((weights * (confidence - told).square()).sum(), images),
        }


def _distances(boxes: Tensor, wanted: Tensor, references: Tensor) -> Tensor:
    """Squared differences of centres and sides as parts of the input: [..., 4] -> [...]."""
    whole = references[..., 2:] - references[..., :2]
    centres = (boxes[..., :2] + boxes[..., 2:] - wanted[..., :2] - wanted[..., 2:]) / (2 * whole)
    sides = ((boxes[..., 2:] - boxes[..., :2]) - (wanted[..., 2:] - wanted[..., :2])) / whole
    return centres.square().sum(dim=-1) + sides.square().sum(dim=-1)
