"""Anchors: reference boxes at every position of every pyramid level (Faster R-CNN, section 3.1.1)."""

from collections.abc import Sequence

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


def grid_anchors(base: Tensor, height: int, width: int, stride: int) -> Tensor:
    """The base anchors shifted to each position of a map: [B, 4] -> [height * width * B, 4], row by row."""
    columns = torch.arange(width, dtype=torch.float32, device=base.device) * stride
    rows = torch.arange(height, dtype=torch.float32, device=base.device) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
    return (shifts + base).reshape(-1, 4)


def pyramid_anchors(
    sizes: Sequence[float],
    ratios: Sequence[float],
    strides: Sequence[int],
    shapes: Sequence[tuple[int, int]],
    *,
    rounded: bool,
    device: torch.device,
) -> list[Tensor]:
    """Anchors of every level.

    Args:
        sizes, strides, shapes: for each level the anchor size, the stride and the map's (height, width).

    Returns:
        For each level [H * W * len(ratios), 4], position-major, the order of the RPN's flattened output.
    """
    return [
        grid_anchors(base_anchors(size, ratios, rounded=rounded).to(device), height, width, stride)
        for size, stride, (height, width) in zip(sizes, strides, shapes, strict=True)
    ]
