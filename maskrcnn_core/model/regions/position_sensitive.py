"""Position-sensitive RoI transforms: every bin of a region is cut from score maps of its own (Dai et al., R-FCN, NIPS
2016, section 2).

A convolution makes, once an image, k x k maps of every score: is this the upper left of a dog, its middle, ... Nothing
with weights is left to do for a region, which is what makes R-FCN quick. Channel (c * k + i) * k + j holds score c of
the bin in row i, column j.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.layers.convolve import convolve
from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.model.regions.levels import LevelRule, cut_by_level
from maskrcnn_core.structures import ImageFeatures

Rounding = Literal["caffe", "torchvision"]

# Shortest side of a region in R-FCN's own layer, cells.
_CAFFE_LEAST = 0.1


class PositionSensitiveScores(nn.Module):
    """Scores and box deltas of each bin of a region, from the maps of that bin.

    `aligned` is true: regions are not shifted against pixel centres.

    Args:
        in_channels: of the maps that scores are made from.
        num_scores: class logits of a region, background's too (K + 1).
        num_deltas: numbers of its boxes, 4 of each.
        bins: k, side of the grid.
        levels: which map a region of which size is cut from.
        reduced: width of a 1x1 convolution before (R-FCN: 1024); 0 = none.
        sampling_ratio: samples per bin and axis, bilinear (0 = adaptive); None = averages over whole cells.
        rounding: of whole cells, as `position_sensitive_pool`.
    """

    def __init__(
        self,
        in_channels: int,
        num_scores: int,
        num_deltas: int,
        bins: int,
        levels: LevelRule,
        *,
        reduced: int = 0,
        sampling_ratio: int | None = None,
        rounding: Rounding = "caffe",
    ) -> None:
        super().__init__()
        self.bins, self.aligned, self.levels = bins, True, levels
        self.sampling_ratio, self.rounding = sampling_ratio, rounding
        width = reduced or in_channels
        self.reduce = nn.Conv2d(in_channels, reduced, 1) if reduced else None
        self.classes = nn.Conv2d(width, num_scores * bins**2, 1)
        self.deltas = nn.Conv2d(width, num_deltas * bins**2, 1)
        for conv in (self.reduce, self.classes, self.deltas):
            if conv is not None:
                nn.init.normal_(conv.weight, std=0.01)
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)

    def maps(self, features: ImageFeatures) -> Sequence[Tensor]:
        """Score maps of each level, [N, (num_scores + num_deltas) * bins^2, H_l, W_l]."""
        levels = features.maps[: len(self.levels.strides)]
        if self.reduce is not None:
            levels = [convolve(self.reduce, level, relu=True) for level in levels]
        return [torch.cat((self.classes(level), self.deltas(level)), dim=1) for level in levels]

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Scores of each bin.

        Args:
            maps: of `maps`.
            boxes: [R, 4] in input pixels; image_index: [R] int64.

        Returns:
            [R, num_scores + num_deltas, bins, bins]; 0 for a bin that lies outside its map.
        """
        if len(boxes) == 0:
            return maps[0].new_zeros(0, maps[0].shape[1] // self.bins**2, self.bins, self.bins)
        levels = self.levels.choose(boxes)
        return cut_by_level(maps, boxes, image_index, levels, self.levels.strides, self._cut, fixed_size=boxes.is_cuda)

    def _cut(self, features: Tensor, regions: Tensor, stride: float) -> Tensor:
        # Half precision holds no coordinate of a large image.
        table = full_precision(features)
        regions = regions.to(table.dtype)
        if self.sampling_ratio is None:
            return position_sensitive_pool(table, regions, stride, self.bins, self.rounding).to(features.dtype)
        output: Tensor = torchvision.ops.ps_roi_align(table, regions, self.bins, 1.0 / stride, self.sampling_ratio)
        if self.sampling_ratio == 0:  # the operator divides by the number of samples, which an empty region has none of
            empty = (regions[:, 3:] <= regions[:, 1:3]).any(dim=1)
            output = torch.where(empty[:, None, None, None], 0.0, output)
        return output.to(features.dtype)


def position_sensitive_pool(features: Tensor, regions: Tensor, stride: float, bins: int, rounding: Rounding) -> Tensor:
    """Average over the whole cells of each bin, in the maps of that bin.

    Args:
        features: [N, C * bins^2, H, W] float32 or float64.
        regions: [R, 5] as (image, x1, y1, x2, y2) in input pixels.
        rounding: "caffe" rounds a region to whole pixels (R-FCN's own layer, whose corners are the first and the last
            pixel: one less than our x2, y2); "torchvision" to whole cells of the map, of which its operator never
            reaches the last row and column.

    Returns:
        [R, C, bins, bins]; 0 for a bin without a cell.
    """
    if rounding == "torchvision":
        output: Tensor = torchvision.ops.ps_roi_pool(features, regions, bins, 1.0 / stride)
        return output
    height, width = features.shape[-2:]
    # First cell of each bin and the one after its last: [R, bins].
    left, right = _caffe_cells(regions[:, 1], regions[:, 3], stride, bins, width)
    top, bottom = _caffe_cells(regions[:, 2], regions[:, 4], stride, bins, height)
    # Sums over rectangles as differences of sums from the corner, [N, C * bins^2, H + 1, W + 1], in float64: what is
    # left of two such sums has the rounding of the whole.
    sums = functional.pad(features.double(), (1, 0, 1, 0)).cumsum(dim=-1).cumsum(dim=-2)
    channels, cells = sums.shape[1] // bins**2, (height + 1) * (width + 1)
    bin_index = torch.arange(bins**2, device=regions.device).view(bins, bins)
    channel = torch.arange(channels, device=regions.device)[:, None, None]
    first = regions[:, 0].to(torch.int64)[:, None, None, None] * channels + channel
    first = (first * bins**2 + bin_index) * cells  # of each score's own map: [R, C, bins, bins]

    def sums_to(y: Tensor, x: Tensor) -> Tensor:
        """[R, C, bins, bins] of the cells above and left of each corner."""
        corner = y[:, None, :, None] * (width + 1) + x[:, None, None, :]
        return sums.flatten().index_select(0, (first + corner).flatten()).view(first.shape)

    total = (sums_to(bottom, right) - sums_to(top, right)) - (sums_to(bottom, left) - sums_to(top, left))
    # Their averages.
    counts = (bottom - top)[:, None, :, None] * (right - left)[:, None, None, :]
    return (total / counts.clamp(min=1)).to(features.dtype)


def _caffe_cells(low: Tensor, high: Tensor, stride: float, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """Cells of the bins along one axis, first and one after the last, within the map: [R], [R] pixels -> two of
    [R, bins] int64."""
    start, end = _round_half_away(low) / stride, _round_half_away(high) / stride
    step = (end - start).clamp(min=_CAFFE_LEAST) / bins
    numbers = torch.arange(bins, device=low.device)
    first = torch.floor(start[:, None] + numbers * step[:, None])
    last = torch.ceil(start[:, None] + (numbers + 1) * step[:, None])
    return first.clamp(0, size).to(torch.int64), last.clamp(0, size).to(torch.int64)


def _round_half_away(x: Tensor) -> Tensor:
    return torch.floor(x.abs() + 0.5) * x.sign()
