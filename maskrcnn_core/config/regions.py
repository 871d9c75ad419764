"""The region stage: which regions are learnt from, and how their features are cut out."""

from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.config.checks import require, require_between, require_fraction, require_typed
from maskrcnn_core.config.limits import MAX_CHANNELS, MAX_LISTED, MAX_PIXEL, MAX_REGIONS, MAX_RESOLUTION

# Up to so many parts the operator finds the whole cells in float32 (tests hold it); no network sees larger crops.
_MAX_PARTS = 6
_MAX_CROP = 1024


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
    sampling: Literal["random", "hardest"] = "random"
    """Which regions are sampled: random = drawn; hardest = all go through the box head, and those of highest loss are
    learnt on, whatever they are (OHEM: Shrivastava et al., CVPR 2016; R-FCN)."""
    hardest_nms_overlap: float = 1.0
    """Of regions with more than this IoU only the hardest is learnt on (sampling hardest; OHEM: 0.7); 1 = all are."""
    transform: Literal["align", "pool", "warp", "position_pool", "position_align", "spatial_pyramid", "crop"] = "align"
    """How a region becomes a fixed grid: align = RoIAlign (Mask R-CNN), pool = RoIPool (Fast R-CNN), warp = RoIWarp
    (bilinear on the quantised region; Dai et al., CVPR 2016); position_pool, position_align = each bin from score maps
    of its own, which then vote (R-FCN); spatial_pyramid = maxima over parts of several sizes (SPP-net); crop = the
    region's pixels, which a whole network of its own sees (R-CNN). Masks and keypoints with position_pool,
    position_align and spatial_pyramid are cut by align."""
    rounding: Literal["caffe", "torchvision"] = "caffe"
    """What position_pool rounds: the region to whole pixels (caffe: R-FCN's own layer), or to whole cells of the map
    (torchvision, whose operator never reaches the last row and column of the map)."""
    reduced_channels: int = 0
    """Width of a 1x1 convolution before the score maps (position_pool, position_align; R-FCN: 1024); 0 = none."""
    pyramid_levels: tuple[int, ...] = (1, 2, 3, 6)
    """Parts a side of each level (spatial_pyramid)."""
    crop_size: int = 227
    """Side of the square that a region's pixels are warped to, pixels (crop)."""
    crop_context: int = 16
    """How many of them, at each side, show what is around the region (crop)."""
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
        for name in ("positive_overlap", "positive_fraction", "crowd_overlap", "hardest_nms_overlap"):
            require_fraction(f"model.regions.{name}", getattr(self, name))
        require_between("model.regions.batch_size", self.batch_size, 1, MAX_REGIONS)
        for name in ("box_resolution", "mask_resolution", "keypoint_resolution"):
            require_between(f"model.regions.{name}", getattr(self, name), 1, MAX_RESOLUTION)
        require_between("model.regions.reduced_channels", self.reduced_channels, 0, MAX_CHANNELS)
        require(
            0 < len(self.pyramid_levels) <= MAX_LISTED and all(1 <= n <= _MAX_PARTS for n in self.pyramid_levels),
            "model.regions.pyramid_levels",
            self.pyramid_levels,
            f"at least one number from 1 to {_MAX_PARTS}",
        )
        require_between("model.regions.crop_size", self.crop_size, 16, _MAX_CROP)
        require(
            0 <= 2 * self.crop_context < self.crop_size,
            "model.regions.crop_context",
            self.crop_context,
            f"0 to less than half of model.regions.crop_size ({self.crop_size})",
        )
        require_between("model.regions.sampling_ratio", self.sampling_ratio, 0, MAX_LISTED)
        require_between("model.regions.canonical_size", self.canonical_size, 1e-3, MAX_PIXEL)
        require(2 <= self.canonical_level <= 5, "model.regions.canonical_level", self.canonical_level, "2 to 5")
