"""Spatial pyramid pooling: a region as the maxima over its 1 x 1, 2 x 2, 3 x 3, ... parts (He et al., SPP-net, ECCV
2014).

The region may be cut from one of several maps of one trunk, of the image at several scales: from that in which it is
nearest to the size that the trunk was trained with (section 4.1, "multi-scale feature extraction").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.boxes import box_areas
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.model.regions.levels import LevelRule, cut_by_level
from maskrcnn_core.structures import ImageFeatures


@dataclass(frozen=True)
class ScaleRule:
    """Which scale of the image a region of which size is cut from.

    Attributes:
        scales: of the maps, in sides of the input.
        stride: of the trunk's last map, pixels of the image that it sees.
        canonical_size: regions of this size, square root of area, are what the trunk expects.
    """

    scales: tuple[float, ...]
    stride: int
    canonical_size: float

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ConfigError(f"model.pyramid.image_scales: got {self.scales}, expected numbers above 0")

    @property
    def strides(self) -> tuple[float, ...]:
        """Input pixels a cell of each map."""
        return tuple(self.stride / scale for scale in self.scales)

    def choose(self, boxes: Tensor) -> Tensor:
        """Index of each region's map: [R, 4] input pixels -> [R] int64."""
        sizes = box_areas(boxes).clamp(min=0).sqrt()
        # Made number by number: a list copied from the host would be waited for.
        distances = [(sizes * scale - self.canonical_size).abs() for scale in self.scales]
        return torch.stack(distances).argmin(dim=0)


class SpatialPyramid(nn.Module):
    """Maxima of a region's parts, level by level.

    `aligned` is true as in `PyramidRoIPool`.

    Args:
        levels: parts a side of each level of the spatial pyramid (SPP-net: 1, 2, 3, 6).
        maps_rule: which map a region of which size is cut from.

    Attributes:
        bins: number of parts of all levels; the output is a column of them.
    """

    def __init__(self, levels: Sequence[int], maps_rule: LevelRule | ScaleRule) -> None:
        super().__init__()
        self.levels, self.maps_rule = tuple(levels), maps_rule
        self.bins, self.aligned = sum(level**2 for level in levels), True

    def maps(self, features: ImageFeatures) -> Sequence[Tensor]:
        """The maps that regions are cut from: further ones are for the dense stage alone."""
        return features.maps[: len(self.maps_rule.strides)]

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Maxima of each region's parts, row by row, one level after the other.

        Args:
            maps: of `maps`.
            boxes: [R, 4] in input pixels; image_index: [R] int64.

        Returns:
            [R, C, bins, 1]; 0 for a region that lies outside its map, of any other what lies inside is parted.
        """
        if len(boxes) == 0:
            return maps[0].new_zeros(0, maps[0].shape[1], self.bins, 1)
        rule = self.maps_rule
        chosen = rule.choose(boxes)
        return cut_by_level(maps, boxes, image_index, chosen, rule.strides, self._cut, fixed_size=boxes.is_cuda)

    def _cut(self, features: Tensor, regions: Tensor, stride: float) -> Tensor:
        # Half precision holds no coordinate of a large image.
        table = full_precision(features)
        cells = within_map(window_of_cells(regions[:, 1:] / stride), *table.shape[-2:])
        windows = torch.cat((regions[:, :1], cells), dim=1).to(table.dtype)
        # Parts of a coarse level are unions of those of the finest, where its side divides theirs.
        finest = max(self.levels)
        grid: Tensor = torchvision.ops.roi_pool(table, windows, finest, 1.0)
        pooled = []
        for level in self.levels:
            if finest % level == 0:
                parts = functional.max_pool2d(grid, finest // level)
            else:
                parts = torchvision.ops.roi_pool(table, windows, level, 1.0)
            pooled.append(parts.flatten(2))
        return torch.cat(pooled, dim=2)[..., None].to(features.dtype)


def window_of_cells(boxes: Tensor) -> Tensor:
    """First and last cell of a region, both of it: [R, 4] in cells -> the same, all whole (SPP-net, appendix A).

    These are the cells whose centres lie inside, counted as the paper counts them: the centre of cell j at j. A region
    between two of them has the one cell that holds its middle.
    """
    first, last = torch.floor(boxes[:, :2]) + 1.0, torch.ceil(boxes[:, 2:]) - 1.0
    middle = torch.floor(0.5 * (boxes[:, :2] + boxes[:, 2:]))
    nothing = last < first
    return torch.cat((torch.where(nothing, middle, first), torch.where(nothing, middle, last)), dim=1)


def within_map(windows: Tensor, height: int, width: int) -> Tensor:
    """The windows [R, 4] of cells, cut off at the borders of their map; those wholly outside stay where they are."""
    first, last = windows[:, :2], windows[:, 2:]
    # Limits per axis, made there: a list copied from the host would be waited for.
    limits = torch.cat((torch.full_like(first[:, :1], width - 1.0), torch.full_like(first[:, :1], height - 1.0)), dim=1)
    inside = ((last >= 0) & (first <= limits)).all(dim=1, keepdim=True)
    cut = torch.cat((first.clamp(min=0), torch.minimum(last, limits)), dim=1)
    return torch.where(inside, cut, windows)
