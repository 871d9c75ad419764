"""RoI transforms: a fixed grid of features for each region, whatever its size (tutorial, "RoI transform").

Three here with one call, over one map or the levels of a pyramid:

    RoIAlign    samples at exact positions (Mask R-CNN, section 3)
    RoIPool     the region and its bins are rounded to whole cells, maximum of each bin (Fast R-CNN, section 2.1)
    RoIWarp     the region is rounded as in RoIPool, then sampled as in RoIAlign (Dai et al., CVPR 2016, section 3.2, as
                Mask R-CNN, section 3, describes its implementation)

Others have files of their own: `position_sensitive`, `spatial_pyramid`, `image_crop`.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torchvision
from torch import Tensor, nn

from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.model.regions.align import SamplingGrid, roi_align
from maskrcnn_core.model.regions.levels import LevelRule, cut_by_level
from maskrcnn_core.structures import ImageFeatures


class RoITransform(Protocol):
    """What cuts regions out of feature maps.

    Attributes:
        bins: the output has bins x bins places; that of a spatial pyramid is a column of bins.
        aligned: pixels are taken at their centres; false = half a pixel beside them (torchvision's models), which mask
            targets have to follow.
    """

    bins: int
    aligned: bool

    def maps(self, features: ImageFeatures) -> Sequence[Tensor]:
        """What regions are cut from, made once an image."""
        ...

    def __call__(self, maps: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Features of each region.

        Args:
            maps: of `maps`.
            boxes: [R, 4] in input pixels.
            image_index: [R] int64, which of the N images each box lies in.

        Returns:
            [R, C, bins, bins]; of a spatial pyramid [R, C, bins, 1].
        """
        ...


class _FromLevels(nn.Module):
    """A transform of the pyramid's own maps."""

    levels: LevelRule

    def maps(self, features: ImageFeatures) -> Sequence[Tensor]:
        """The levels that regions are cut from: further ones are for the dense stage alone."""
        return features.maps[: len(self.levels.strides)]


class PyramidRoIAlign(_FromLevels):
    """RoIAlign from the pyramid level that fits each region's size.

    Args:
        bins: side of the output.
        sampling_ratio: samples per bin and axis; 0 = as many as the bin has cells of the map.
        aligned: sample at pixel centres (half-pixel shift).
        levels: which map a region of which size is cut from (P2 to P5: strides 4, 8, 16, 32; C4: 16 alone).
        reduction: "average" or "max" of a bin's samples.
    """

    def __init__(
        self,
        bins: int,
        sampling_ratio: int,
        aligned: bool,
        levels: LevelRule,
        reduction: str = "average",
    ) -> None:
        super().__init__()
        self.bins, self.sampling_ratio, self.aligned = bins, sampling_ratio, aligned
        self.grid = SamplingGrid(bins, sampling_ratio, aligned, reduction)
        self.levels = levels

    def forward(self, pyramid: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Features of each region.

        Args:
            pyramid: maps [N, C, H_l, W_l], at least one for each stride; further ones are not used.
            boxes: [R, 4] in input pixels.
            image_index: [R] int64, which of the N images each box lies in.

        Returns:
            [R, C, bins, bins].
        """
        maps = pyramid[: len(self.levels.strides)]
        if len(boxes) == 0:
            return _no_regions(maps[0], self.bins)
        levels = self.levels.choose(boxes)
        return roi_align(maps, boxes, image_index, levels, self.levels.strides, self.grid)


class PyramidRoIPool(_FromLevels):
    """RoIPool from the pyramid level that fits each region's size.

    `aligned` is true: only the features are quantised, what a mask head has to draw lies in the exact region.

    Args:
        bins, levels: as in `PyramidRoIAlign`.
    """

    def __init__(self, bins: int, levels: LevelRule) -> None:
        super().__init__()
        self.bins, self.aligned = bins, True
        self.levels = levels

    def forward(self, pyramid: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Features of each region, as `PyramidRoIAlign.forward`; 0 for a bin that lies outside its map."""
        maps = pyramid[: len(self.levels.strides)]
        if len(boxes) == 0:
            return _no_regions(maps[0], self.bins)
        levels = self.levels.choose(boxes)
        return cut_by_level(maps, boxes, image_index, levels, self.levels.strides, self._cut, fixed_size=boxes.is_cuda)

    def _cut(self, features: Tensor, regions: Tensor, stride: float) -> Tensor:
        # Half precision holds no coordinate of a large image.
        table = full_precision(features)
        output: Tensor = torchvision.ops.roi_pool(table, regions.to(table.dtype), self.bins, 1.0 / stride)
        return output.to(features.dtype)


class PyramidRoIWarp(_FromLevels):
    """RoIWarp from the pyramid level that fits each region's size.

    `aligned` is true as in `PyramidRoIPool`.

    Args:
        bins, sampling_ratio, levels, reduction: as in `PyramidRoIAlign`.
    """

    def __init__(
        self,
        bins: int,
        sampling_ratio: int,
        levels: LevelRule,
        reduction: str = "average",
    ) -> None:
        super().__init__()
        self.bins, self.sampling_ratio, self.aligned = bins, sampling_ratio, True
        self.grid = SamplingGrid(bins, sampling_ratio, True, reduction)
        self.levels = levels

    def forward(self, pyramid: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Features of each region, as `PyramidRoIAlign.forward`."""
        maps = pyramid[: len(self.levels.strides)]
        if len(boxes) == 0:
            return _no_regions(maps[0], self.bins)
        levels = self.levels.choose(boxes)
        # The regions, rounded to whole cells of their own maps: [R, 4].
        finest = torch.full_like(levels, self.levels.strides[0])
        strides = torch.bitwise_left_shift(finest, levels)[:, None].to(boxes.dtype)
        whole = whole_cells(boxes / strides) * strides
        return roi_align(maps, whole, image_index, levels, self.levels.strides, self.grid)


def whole_cells(boxes: Tensor) -> Tensor:
    """The cells that RoIPool takes for a region: [R, 4] in cells -> the same, all whole, sides at least 1.

    Corners are rounded, half away from zero; the cell of the lower right corner belongs to the region (Fast R-CNN's
    implementation, where a region's pixels are counted from first to last).
    """
    rounded = torch.floor(boxes.abs() + 0.5) * boxes.sign()
    first, last = rounded.chunk(2, dim=1)
    return torch.cat((first, torch.maximum(last, first) + 1.0), dim=1)


def _no_regions(features: Tensor, bins: int) -> Tensor:
    return features.new_zeros(0, features.shape[1], bins, bins)
