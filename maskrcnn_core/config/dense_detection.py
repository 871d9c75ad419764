"""Which of the dense stage's boxes become detections, where it finds detections."""

from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.config.checks import require_between, require_fraction, require_not_negative, require_typed
from maskrcnn_core.config.limits import MAX_PIXEL, MAX_REGIONS


@dataclass(frozen=True)
class DenseDetectionConfig:
    """From the outputs of all anchors to the detections of an image."""

    score_from: Literal["sigmoid", "softmax", "centreness", "conditional", "product", "linear"] = "sigmoid"
    """sigmoid = each class by itself (RetinaNet); softmax = classes compete, with a background that has a number of its
    own (SSD); centreness = the square root of class score times centreness (FCOS); conditional = objectness times the
    softmax of the classes (YOLOv2); product = confidence times class value, both as they are (YOLOv1);
    linear = as it is (DetectorNet)."""
    min_score: float = 0.05
    """Detections below this score are dropped."""
    max_candidates: int = 1000
    """Pairs of anchor and class that enter NMS, best first."""
    candidates_of: Literal["level", "image", "class"] = "level"
    """Whether max_candidates are of each level (RetinaNet), of the image or of each class (SSD)."""
    nms: Literal["hard", "soft_linear", "soft_gaussian", "average"] = "hard"
    """What overlapping weaker detections suffer: dropped, or their score lowered (Bodla et al., ICCV 2017); average =
    the closest two become one with the sum of their scores, again and again (OverFeat). Such a score is s / (1 + s) of
    the sum s."""
    nms_overlap: float = 0.5
    """IoU above which the weaker of two detections of one class is dropped (hard) or lowered (soft_linear); IoU less
    the distance of the centres in mean diagonals above which two become one (average)."""
    soft_sigma: float = 0.5
    """Width of the Gaussian by which scores fall with the overlap (soft_gaussian)."""
    nms_per_class: bool = True
    """Only detections of the same class compete; false = all of an image."""
    clip: Literal["before_nms", "after_nms"] = "before_nms"
    """When boxes are cut at the image's border: before overlaps are measured (R-CNN, torchvision), or after (Caffe's
    SSD)."""
    max_detections: int = 100
    """Detections kept per image."""
    min_size: float = 1e-2
    """Detections with a side shorter than this are dropped, input pixels."""

    def __post_init__(self) -> None:
        require_typed("model.dense.detection", self)
        for name in ("max_candidates", "max_detections"):
            require_between(f"model.dense.detection.{name}", getattr(self, name), 1, MAX_REGIONS)
        require_between("model.dense.detection.soft_sigma", self.soft_sigma, 1e-6, MAX_PIXEL)
        for name in ("min_score", "nms_overlap"):
            require_fraction(f"model.dense.detection.{name}", getattr(self, name))
        require_not_negative("model.dense.detection.min_size", self.min_size)
