"""The dense stage's loss: which anchors are learnt from, and how."""

from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.config.checks import require_between, require_fraction, require_not_negative, require_typed
from maskrcnn_core.config.limits import MAX_PIXEL


@dataclass(frozen=True)
class DenseLossConfig:
    """What the dense head learns by. Overlaps and the loss of boxes are those of `model.dense` itself."""

    kind: Literal["sampled", "focal", "points", "hard_negatives", "cells", "grid", "assigned", "box_masks"] = "sampled"
    """sampled = some anchors drawn at random (RPN); focal = all anchors, the easy ones with little weight (RetinaNet);
    points = the same, but an anchor stands for the smallest object around its centre instead of the one that it
    overlaps most, and learns how central it is (FCOS); hard_negatives = the positives, and of the negatives of each
    image those that look most like objects (SSD); cells = an object teaches the prior of its cell whose shape is
    nearest (YOLOv2); grid = squared errors of the cells that hold an object's centre (YOLOv1); assigned = each object
    teaches one anchor, so that all are nearest together, and every other learns that it is none (MultiBox);
    box_masks = squared errors of the masks of boxes and their halves (DetectorNet)."""
    alpha: float = 0.25
    """Weight of positives; that of negatives is 1 - alpha (focal, points)."""
    gamma: float = 2.0
    """How fast the weight of an anchor falls with its certainty (focal, points)."""
    divisor: Literal["image", "batch", "average"] = "image"
    """What the sums are divided by (focal): image = the positives of each image, then the mean over images
    (torchvision); batch = the positives of the batch (the paper); average = a moving average of these, from 100 on
    (detectron2)."""
    negatives_per_positive: float = 3.0
    """How many negatives of an image are learnt from (hard_negatives)."""
    centre_radius: float = 1.5
    """An anchor stands for an object only if its centre is within so many of its own sides of the object's (points)."""

    object_weight: float = 5.0
    """Weight of the objectness of boxes that are an object's (cells; grid: 1)."""
    empty_weight: float = 1.0
    """Weight of the objectness of all others (cells; grid: 0.5). Those with more than model.dense.negative_overlap with
    an object count for nothing (cells). Of cells that no object covers (box_masks: 0.1)."""
    box_weight: float = 1.0
    """Weight of the boxes (cells; grid: 5; assigned: 0.3)."""
    class_weight: float = 1.0
    """Weight of the classes (cells, grid, assigned)."""
    warm_up_images: int = 0
    """So many first images of each process also draw every box to its prior (cells; Darknet: 12800)."""

    def __post_init__(self) -> None:
        require_typed("model.dense.loss", self)
        for name in ("object_weight", "empty_weight", "box_weight", "class_weight", "warm_up_images"):
            require_between(f"model.dense.loss.{name}", getattr(self, name), 0, 1e9)
        require_fraction("model.dense.loss.alpha", self.alpha)
        require_not_negative("model.dense.loss.gamma", self.gamma)
        require_between("model.dense.loss.gamma", self.gamma, 0, MAX_PIXEL)
        require_between("model.dense.loss.negatives_per_positive", self.negatives_per_positive, 0, MAX_PIXEL)
        require_between("model.dense.loss.centre_radius", self.centre_radius, 1e-6, MAX_PIXEL)
