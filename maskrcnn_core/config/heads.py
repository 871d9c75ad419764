"""The heads of the region stage: boxes, masks, keypoints."""

from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.config.checks import (
    require,
    require_between,
    require_fraction,
    require_not_negative,
    require_positive,
    require_typed,
)
from maskrcnn_core.config.limits import MAX_CHANNELS, MAX_KEYPOINTS, MAX_LAYERS, MAX_PIXEL, MAX_REGIONS
from maskrcnn_core.config.person import COCO_KEYPOINTS


@dataclass(frozen=True)
class BoxHeadConfig:
    """Classifier and box regressor on each region (Fast R-CNN)."""

    enabled: bool = True
    """False builds a region proposal network alone."""
    channels: int = 1024
    """Width of the fully connected layers."""
    layers: int = 2
    """Number of fully connected layers; 0 = average over the region's grid (c4)."""
    convs: int = 0
    """3x3 convolutions before the fully connected layers."""
    conv_channels: int = 256
    """Width of these convolutions."""
    conv_norm: Literal["none", "frozen_batch", "group"] = "none"
    """Normalisation after each of these convolutions."""
    class_agnostic: bool = False
    """One box per region instead of one per class."""
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """Scale of the regression targets dx, dy, dw, dh."""
    box_loss: Literal["smooth_l1", "giou", "ciou"] = "smooth_l1"
    """Loss of the boxes: on deltas (smooth_l1) or on decoded boxes (giou, ciou)."""
    smooth_l1_beta: float = 1.0 / 9.0
    """Where the smooth L1 loss turns from square to linear; 0 = plain L1."""
    min_score: float = 0.05
    """Detections below this score are dropped."""
    max_candidates: int = 10_000
    """Pairs of region and class that enter NMS, best first, per image."""
    nms: Literal["hard", "soft_linear", "soft_gaussian"] = "hard"
    """What overlapping weaker detections suffer: dropped, or their score lowered (Bodla et al., ICCV 2017)."""
    nms_overlap: float = 0.5
    """IoU above which the weaker of two detections of one class is dropped (hard) or lowered (soft_linear)."""
    soft_sigma: float = 0.5
    """Width of the Gaussian by which scores fall with the overlap (soft_gaussian)."""
    nms_per_class: bool = True
    """Only detections of the same class compete; false = all of an image."""
    max_detections: int = 100
    """Detections kept per image."""
    min_size: float = 1e-2
    """Detections with a side shorter than this are dropped, input pixels."""

    def __post_init__(self) -> None:
        require_typed("model.box_head", self)
        for name in ("channels", "conv_channels"):
            require_between(f"model.box_head.{name}", getattr(self, name), 1, MAX_CHANNELS)
        for name in ("layers", "convs"):
            require_between(f"model.box_head.{name}", getattr(self, name), 0, MAX_LAYERS)
        for name in ("max_candidates", "max_detections"):
            require_between(f"model.box_head.{name}", getattr(self, name), 1, MAX_REGIONS)
        require_between("model.box_head.soft_sigma", self.soft_sigma, 1e-6, MAX_PIXEL)
        for name in ("min_score", "nms_overlap"):
            require_fraction(f"model.box_head.{name}", getattr(self, name))
        require(
            all(1e-6 <= w <= MAX_PIXEL for w in self.delta_weights),
            "model.box_head.delta_weights",
            self.delta_weights,
            "numbers above 0",
        )
        require_not_negative("model.box_head.smooth_l1_beta", self.smooth_l1_beta)
        require_not_negative("model.box_head.min_size", self.min_size)


@dataclass(frozen=True)
class MaskHeadConfig:
    """Fully convolutional mask predictor on the refined boxes (Mask R-CNN)."""

    enabled: bool = True
    """False builds a box detector (Faster R-CNN)."""
    kind: Literal["fcn", "mlp"] = "fcn"
    """fcn = convolutions and a deconvolution; mlp = two fully connected layers (the paper's comparison, table 2e)."""
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    """sigmoid = each class its own mask; softmax = classes compete for each pixel (table 2b)."""
    regions: Literal["refined", "proposals"] = "refined"
    """Where masks are predicted: on the refined boxes after NMS, or on the proposals that they came from."""
    channels: int = 256
    """Width of the convolutions."""
    layers: int = 4
    """3x3 convolutions before the deconvolution."""
    class_agnostic: bool = False
    """One mask per region instead of one per class."""
    paste: Literal["exact", "bicubic", "torchvision"] = "exact"
    """Resampling of the soft mask into the image: exact = bilinear at exact pixel centres (detectron2); bicubic = the
    same places, smoother; torchvision = its rounded boxes, so that its checkpoints give its own masks."""
    threshold: float = 0.5
    """A pixel is object where its resampled probability reaches this."""
    soft_targets: bool = True
    """Train on the fractional coverage of each target cell (torchvision); false = round it at one half."""

    def __post_init__(self) -> None:
        require_typed("model.mask_head", self)
        require_between("model.mask_head.channels", self.channels, 1, MAX_CHANNELS)
        require_between("model.mask_head.layers", self.layers, 0, MAX_LAYERS)
        require(0.0 < self.threshold < 1.0, "model.mask_head.threshold", self.threshold, "a number between 0 and 1")


@dataclass(frozen=True)
class KeypointHeadConfig:
    """Keypoint predictor on the refined boxes: one heatmap for each keypoint (Mask R-CNN, section 5)."""

    enabled: bool = False
    """True adds keypoints."""
    channels: int = 512
    """Width of the convolutions."""
    layers: int = 8
    """3x3 convolutions before the deconvolution."""
    names: tuple[str, ...] = COCO_KEYPOINTS
    """Keypoints in the order of the annotations; left_X and right_X change places in mirrored images."""
    categories: tuple[str, ...] = ("person",)
    """Names of the categories that have keypoints; detections of others have none."""
    decode: Literal["exact", "torchvision"] = "exact"
    """Where in its cell a heatmap's maximum lies: exact = detectron2's half-pixel rule; torchvision = its own, so that
    its checkpoints give its own keypoints."""
    loss_weight: float = 1.0
    """Factor of the keypoint loss."""

    def __post_init__(self) -> None:
        require_typed("model.keypoint_head", self)
        require_between("model.keypoint_head.channels", self.channels, 1, MAX_CHANNELS)
        require_between("model.keypoint_head.layers", self.layers, 1, MAX_LAYERS)
        require_positive("model.keypoint_head.loss_weight", self.loss_weight)
        require(
            0 < len(self.names) <= MAX_KEYPOINTS and len(set(self.names)) == len(self.names),
            "model.keypoint_head.names",
            self.names,
            f"unique names, at least one, up to {MAX_KEYPOINTS}",
        )
        require(
            len(self.categories) > 0 and len(set(self.categories)) == len(self.categories),
            "model.keypoint_head.categories",
            self.categories,
            "unique names, at least one",
        )
