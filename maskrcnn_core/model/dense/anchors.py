"""Anchors: reference boxes at every position of every pyramid level (Faster R-CNN, section 3.1.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def base_anchors(size: float, ratios: Sequence[float], *, rounded: bool) -> Tensor:
    """Anchors centred on the origin.

    Args:
        size: square root of the area, pixels.
        ratios: height / width.
        rounded: corners to whole pixels (torchvision).

    Returns:
        [len(ratios), 4] float32.
    """
    heights = size * torch.tensor(ratios, dtype=torch.float32).sqrt()
    widths = size / torch.tensor(ratios, dtype=torch.float32).sqrt()
    anchors = torch.stack((-widths, -heights, widths, heights), dim=1) / 2
    return anchors.round() if rounded else anchors


def grid_anchors(base: Tensor, shape: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """The base anchors shifted to each position of a map: [B, 4] -> [H * W * B, 4], row by row.

    Args:
        base: [B, 4]; shape: the map's (height, width); stride: (vertical, horizontal), input pixels.
    """
    # The top left corner of each cell, input pixels: [H, W].
    columns = torch.arange(shape[1], dtype=torch.float32, device=base.device) * stride[1]
    rows = torch.arange(shape[0], dtype=torch.float32, device=base.device) * stride[0]
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    # Every base anchor at every one of them: [H * W, 1, 4] + [B, 4].
    shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
    return (shifts + base).reshape(-1, 4)


@dataclass(frozen=True)
class AnchorRule:
    """Anchors of each level (attributes as in `AnchorConfig`)."""

    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    rounded: bool
    fitted_strides: bool
    every_level: bool = False

    @property
    def per_position(self) -> int:
        """How many anchors are at each position."""
        return len(self.ratios) * (len(self.sizes) if self.every_level else 1)

    def bases(self, num_levels: int) -> list[Tensor]:
        """The anchors at the origin, for each level [per_position, 4]: size by size, of each size ratio by ratio."""
        each = [base_anchors(size, self.ratios, rounded=self.rounded) for size in self.sizes]
        return [torch.cat(each)] * num_levels if self.every_level else each


def pyramid_anchors(
    rule: AnchorRule,
    strides: Sequence[int],
    shapes: Sequence[tuple[int, int]],
    input_shape: tuple[int, int],
    device: torch.device,
) -> list[Tensor]:
    """Anchors of every level.

    Args:
        strides, shapes: for each level the nominal stride and the map's (height, width).
        input_shape: (height, width) of the padded batch.

    Returns:
        For each level [H * W * per_position, 4], position-major, the order of the RPN's flattened output.
    """
    grids = []
    for base, stride, shape in zip(rule.bases(len(strides)), strides, shapes, strict=True):
        steps = (stride, stride)
        if rule.fitted_strides:
            steps = (input_shape[0] // shape[0], input_shape[1] // shape[1])
        grids.append(grid_anchors(base.to(device), shape, steps))
    return grids
