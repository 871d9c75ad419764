"""The dense stage: anchors, and what is predicted for each of them."""

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.config.checks import require, require_between, require_fraction, require_not_negative, require_typed
from maskrcnn_core.config.limits import MAX_LAYERS, MAX_LISTED, MAX_PIXEL, MAX_REGIONS


@dataclass(frozen=True)
class AnchorConfig:
    """The sliding windows of the dense stage."""

    sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Square root of the anchor's area, input pixels: one for each pyramid level, finest first, or see every_level."""
    every_level: bool = False
    """All sizes at every position of every level (one-map models; torchvision's MobileNet models)."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width of the anchors at every position."""
    rounded: bool = False
    """Round anchor corners to whole pixels as torchvision does."""
    fitted_strides: bool = False
    """Space anchors by input size / map size, whole pixels (torchvision: P6 of a 480 wide input steps by 60, not
    64)."""

    def __post_init__(self) -> None:
        require_typed("model.dense.anchors", self)
        require(
            0 < len(self.sizes) <= MAX_LISTED,
            "model.dense.anchors.sizes",
            self.sizes,
            f"at least one size, up to {MAX_LISTED}",
        )
        require(
            all(1e-3 <= s <= MAX_PIXEL for s in self.sizes),
            "model.dense.anchors.sizes",
            self.sizes,
            "numbers above 0, in pixels",
        )
        require(
            0 < len(self.ratios) <= MAX_LISTED and all(1e-3 <= r <= 1e3 for r in self.ratios),
            "model.dense.anchors.ratios",
            self.ratios,
            f"numbers above 0 (0.001 to 1000), up to {MAX_LISTED}",
        )


@dataclass(frozen=True)
class DenseConfig:
    """What is predicted for every position: the Region Proposal Network (Ren et al., NeurIPS 2015; per level as in
    FPN)."""

    enabled: bool = True
    """False: no dense stage; proposals come from a file (data.train.proposals, jobs.label --proposals)."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """Anchor boxes."""
    convs: int = 1
    """3x3 convolutions before the two predictors."""
    positive_overlap: float = 0.7
    """An anchor with at least this IoU with an object is positive."""
    negative_overlap: float = 0.3
    """An anchor whose best IoU is below this is negative; between the two it is ignored."""
    batch_size: int = 256
    """Anchors sampled per image for the loss."""
    positive_fraction: float = 0.5
    """Upper limit of the positives' share among the sampled anchors."""
    crowd_overlap: float = 0.7
    """Anchors with more than this share of their area in a crowd region are no negatives."""
    pre_nms_train: int = 2000
    """Best anchors kept per level before NMS, training."""
    pre_nms_test: int = 1000
    """Best anchors kept per level before NMS, inference."""
    post_nms_train: int = 1000
    """Proposals kept per image after NMS, training."""
    post_nms_test: int = 1000
    """Proposals kept per image after NMS, inference."""
    nms_overlap: float = 0.7
    """IoU above which the weaker of two proposals of one level is dropped."""
    min_score: float = 0.0
    """Proposals less probable than this are dropped."""
    min_size: float = 1e-3
    """Proposals with a side shorter than this are dropped, input pixels."""
    box_loss: Literal["smooth_l1", "giou", "ciou"] = "smooth_l1"
    """Loss of the proposals' boxes: on deltas (smooth_l1) or on decoded boxes (giou, ciou)."""
    smooth_l1_beta: float = 1.0 / 9.0
    """Where the smooth L1 loss turns from square to linear; 0 = plain L1."""

    def __post_init__(self) -> None:
        require_typed("model.dense", self)
        require_between("model.dense.convs", self.convs, 1, MAX_LAYERS)
        for name in ("batch_size", "pre_nms_train", "pre_nms_test", "post_nms_train", "post_nms_test"):
            require_between(f"model.dense.{name}", getattr(self, name), 1, MAX_REGIONS)
        for name in (
            "positive_overlap",
            "negative_overlap",
            "positive_fraction",
            "crowd_overlap",
            "nms_overlap",
            "min_score",
        ):
            require_fraction(f"model.dense.{name}", getattr(self, name))
        require(
            self.negative_overlap <= self.positive_overlap,
            "model.dense.negative_overlap",
            self.negative_overlap,
            f"at most model.dense.positive_overlap ({self.positive_overlap})",
        )
        require_not_negative("model.dense.min_size", self.min_size)
        require_not_negative("model.dense.smooth_l1_beta", self.smooth_l1_beta)
