"""The region stage: which regions are learnt from, and how their features are cut out."""

from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.config.checks import require, require_between, require_fraction, require_typed
from maskrcnn_core.config.limits import MAX_LISTED, MAX_PIXEL, MAX_REGIONS, MAX_RESOLUTION


@dataclass(frozen=True)
class RegionsConfig:
    """How regions are chosen for training and cut from the feature maps."""

    positive_overlap: float = 0.5
    """A proposal with at least this IoU with an object is positive, the others are background."""
    batch_size: int = 512
    """Regions sampled per image for the loss."""
    positive_fraction: float = 0.25
    """Upper limit of the positives' share among the sampled regions."""
    add_ground_truth: bool = True
    """Add the ground-truth boxes to the proposals while training."""
    crowd_overlap: float = 0.7
    """Proposals with more than this share of their area in a crowd region are no negatives."""
    transform: Literal["align", "pool", "warp"] = "align"
    """How a region becomes a fixed grid: align = RoIAlign (Mask R-CNN), pool = RoIPool (Fast R-CNN), warp = RoIWarp
    (bilinear on the quantised region; Dai et al., CVPR 2016)."""
    reduction: Literal["average", "max"] = "average"
    """What a bin makes of its samples (align, warp)."""
    box_resolution: int = 7
    """Output side for the box head, bins."""
    mask_resolution: int = 14
    """Output side for the mask head, bins; masks come out twice as large."""
    keypoint_resolution: int = 14
    """Output side for the keypoint head, bins; heatmaps come out four times as large."""
    sampling_ratio: int = 2
    """Samples per bin and axis (align, warp); 0 = adaptive to the region's size."""
    aligned: bool = True
    """Shift RoIAlign's samples by half a pixel (pixel centres, detectron2); false = torchvision's models."""
    canonical_size: float = 224.0
    """A region of this size (square root of area, input pixels) is cut from P`canonical_level` (FPN, Eq. 1)."""
    canonical_level: int = 4
    """Pyramid level for regions of the canonical size."""

    def __post_init__(self) -> None:
        require_typed("model.regions", self)
        for name in ("positive_overlap", "positive_fraction", "crowd_overlap"):
            require_fraction(f"model.regions.{name}", getattr(self, name))
        require_between("model.regions.batch_size", self.batch_size, 1, MAX_REGIONS)
        for name in ("box_resolution", "mask_resolution", "keypoint_resolution"):
            require_between(f"model.regions.{name}", getattr(self, name), 1, MAX_RESOLUTION)
        require_between("model.regions.sampling_ratio", self.sampling_ratio, 0, MAX_LISTED)
        require_between("model.regions.canonical_size", self.canonical_size, 1e-3, MAX_PIXEL)
        require(2 <= self.canonical_level <= 5, "model.regions.canonical_level", self.canonical_level, "2 to 5")
