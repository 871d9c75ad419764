"""RoIAlign over the levels of a pyramid (Mask R-CNN, section 3; level choice FPN, Eq. 1).

Two ways to the same numbers. On a CPU with a fixed number of samples, every output bin is a weighted sum of rows of the
channels-last feature table, which is what an embedding bag computes: the loop over channels is contiguous and the
result is channels-last as the heads want it. Elsewhere torchvision's operator does it, once per level.
"""

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.boxes import box_areas


def assign_levels(boxes: Tensor, *, canonical_size: float, canonical_level: int, lowest: int, highest: int) -> Tensor:
    """Pyramid level of each box, as an index from `lowest`: [..., 4] -> [...] int64 (FPN, Eq. 1).

    The epsilon of torchvision keeps sizes that are powers of two on the upper level.
    """
    sizes = box_areas(boxes).clamp(min=0).sqrt()
    levels = torch.floor(canonical_level + torch.log2(sizes / canonical_size) + 1e-6)
    return levels.clamp(min=lowest, max=highest).to(torch.int64) - lowest


class PyramidRoIAlign(nn.Module):
    """Cuts a fixed grid of features for each region from the pyramid level that fits its size.

    Args:
        resolution: bins a side of the output.
        sampling_ratio: samples per bin and axis, averaged; 0 = as many as the bin has pixels.
        aligned: sample at pixel centres (half-pixel shift).
        strides: strides of the levels that are used, finest first (P2 to P5: 4, 8, 16, 32).
        canonical_size, canonical_level: a region of this size is cut from this level.
    """

    def __init__(
        self,
        resolution: int,
        sampling_ratio: int,
        aligned: bool,
        strides: Sequence[int],
        canonical_size: float,
        canonical_level: int,
    ) -> None:
        super().__init__()
        self.resolution, self.sampling_ratio, self.aligned = resolution, sampling_ratio, aligned
        self.strides = tuple(strides)
        self.canonical_size, self.canonical_level = canonical_size, canonical_level

    def forward(self, pyramid: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Features of each region.

        Args:
            pyramid: maps [N, C, H_l, W_l], at least one for each stride; further ones are not used.
            boxes: [R, 4] in input pixels.
            image_index: [R] int64, which of the N images each box lies in.

        Returns:
            [R, C, resolution, resolution].
        """
        maps = list(pyramid[: len(self.strides)])
        if len(boxes) == 0:
            return maps[0].new_zeros(0, maps[0].shape[1], self.resolution, self.resolution)
        lowest = self.strides[0].bit_length() - 1
        levels = assign_levels(
            boxes,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
            lowest=lowest,
            highest=lowest + len(maps) - 1,
        )
        if self.sampling_ratio > 0 and not boxes.is_cuda and maps[0].dtype == boxes.dtype:
            return self._by_embedding_bag(maps, boxes, image_index, levels)
        return self._by_operator(maps, boxes, image_index, levels)

    def _by_operator(self, maps: list[Tensor], boxes: Tensor, image_index: Tensor, levels: Tensor) -> Tensor:
        regions = torch.cat((image_index[:, None].to(boxes.dtype), boxes), dim=1)
        output = maps[0].new_zeros(len(boxes), maps[0].shape[1], self.resolution, self.resolution)
        for level, (features, stride) in enumerate(zip(maps, self.strides, strict=True)):
            chosen = (levels == level).nonzero()[:, 0]
            cut = torchvision.ops.roi_align(
                features,
                regions[chosen].to(features.dtype),
                self.resolution,
                1.0 / stride,
                self.sampling_ratio,
                self.aligned,
            )
            output = output.index_copy(0, chosen, cut)
        return output

    def _by_embedding_bag(self, maps: list[Tensor], boxes: Tensor, image_index: Tensor, levels: Tensor) -> Tensor:
        channels, bins = maps[0].shape[1], self.resolution**2
        output = maps[0].new_empty(len(boxes), bins, channels)
        pieces, members = [], []
        for level, (features, stride) in enumerate(zip(maps, self.strides, strict=True)):
            chosen = (levels == level).nonzero()[:, 0]
            if len(chosen) == 0:
                continue
            height, width = features.shape[-2:]
            index, weights = bilinear_taps(
                boxes[chosen] / stride, height, width, self.resolution, self.sampling_ratio, aligned=self.aligned
            )
            index = index + (image_index[chosen] * (height * width))[:, None, None]
            table = features.permute(0, 2, 3, 1).reshape(-1, channels)
            taps = index.shape[-1]
            pieces.append(
                functional.embedding_bag(
                    index.view(-1, taps), table, mode="sum", per_sample_weights=weights.view(-1, taps)
                ).view(len(chosen), bins, channels)
            )
            members.append(chosen)
        # index_select, whose gradient is a fast scatter; that of indexing sums one by one on a CPU.
        output = torch.cat(pieces).index_select(0, torch.argsort(torch.cat(members)))
        return output.view(len(boxes), self.resolution, self.resolution, channels).permute(0, 3, 1, 2)


def bilinear_taps(
    boxes: Tensor, height: int, width: int, resolution: int, sampling_ratio: int, *, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Which map cells, with which weights, make up each bin of RoIAlign.

    Args:
        boxes: [R, 4] in units of map cells.
        height, width: size of the map.
        resolution: bins a side; sampling_ratio: samples per bin and axis, above 0.

    Returns:
        index [R, resolution^2, 4 * sampling_ratio^2] int64 into the map's cells (row-major) and weights of the same
        shape, whose sum is 1 for a bin inside the map.
    """
    y_index, y_weight = _axis_taps(boxes[:, 1], boxes[:, 3], height, resolution, sampling_ratio, aligned=aligned)
    x_index, x_weight = _axis_taps(boxes[:, 0], boxes[:, 2], width, resolution, sampling_ratio, aligned=aligned)
    regions, taps = len(boxes), y_index.shape[-1]
    index = y_index[:, :, None, :, None] * width + x_index[:, None, :, None, :]
    weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    return index.reshape(regions, -1, taps * taps), weight.reshape(regions, -1, taps * taps)


def _axis_taps(
    low: Tensor, high: Tensor, size: int, resolution: int, sampling_ratio: int, *, aligned: bool
) -> tuple[Tensor, Tensor]:
    """One axis of `bilinear_taps`: index and weight [R, resolution, 2 * sampling_ratio].

    Samples more than one cell outside the map count as 0; those within one cell take the border's value.
    """
    offset = 0.5 if aligned else 0.0
    start = low - offset
    length = high - low
    if not aligned:
        length = length.clamp(min=1.0)
    steps = torch.arange(resolution * sampling_ratio, dtype=low.dtype, device=low.device)
    positions = start[:, None] + (steps + 0.5) * (length / (resolution * sampling_ratio))[:, None]
    inside = (positions >= -1.0) & (positions <= size)
    positions = positions.clamp(min=0.0, max=size - 1.0)
    lower = positions.floor()
    fraction = positions - lower
    lower_index = lower.to(torch.int64)
    upper_index = (lower_index + 1).clamp(max=size - 1)
    share = inside.to(low.dtype) / sampling_ratio
    index = torch.stack((lower_index, upper_index), dim=-1)
    weight = torch.stack(((1.0 - fraction) * share, fraction * share), dim=-1)
    shape = (len(low), resolution, 2 * sampling_ratio)
    return index.reshape(shape), weight.reshape(shape)
