"""Anchors: reference boxes at every position of every pyramid level (Faster R-CNN, section 3.1.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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


def grid_anchors(base: Tensor, shape: tuple[int, int], stride: tuple[float, float], offset: float = 0.0) -> Tensor:
    """The base anchors shifted to each position of a map: [B, 4] -> [H * W * B, 4], row by row.

    Args:
        base: [B, 4]; shape: the map's (height, width); stride: (vertical, horizontal), input pixels.
        offset: of the position in its cell, from the top left corner, as a part of the cell.
    """
    # The position in each cell, input pixels: [H, W].
    columns = (torch.arange(shape[1], dtype=torch.float32, device=base.device) + offset) * stride[1]
    rows = (torch.arange(shape[0], dtype=torch.float32, device=base.device) + offset) * stride[0]
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    # Every base anchor at every one of them: [H * W, 1, 4] + [B, 4].
    shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
    return (shifts + base).reshape(-1, 4)


class AnchorRule(Protocol):
    """Which anchors each level has."""

    @property
    def offset(self) -> float:
        """Of `grid_anchors`."""
        ...

    def per_level(self, num_levels: int) -> tuple[int, ...]:
        """How many anchors are at each position of each level."""
        ...

    def bases(self, num_levels: int) -> list[Tensor]:
        """The anchors at the origin, for each level [B_l, 4], in the order of the head's outputs."""
        ...

    def positions(self, shapes: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """Rows and columns of positions of each level, whose map has so many rows and columns of cells."""
        ...

    def steps(
        self, strides: Sequence[int], shapes: Sequence[tuple[int, int]], input_shape: tuple[int, int]
    ) -> list[tuple[float, float]]:
        """Input pixels from one position of each level to the next, (down, across); arguments as `pyramid_anchors`."""
        ...


def nominal_or_fitted(
    strides: Sequence[int], shapes: Sequence[tuple[int, int]], input_shape: tuple[int, int], *, fitted: bool
) -> list[tuple[float, float]]:
    """`AnchorRule.steps`: the strides, or input size / map size in whole pixels."""
    if not fitted:
        return [(stride, stride) for stride in strides]
    return [(input_shape[0] // height, input_shape[1] // width) for height, width in shapes]


@dataclass(frozen=True)
class RatioAnchors:
    """Of each size one anchor for each ratio (attributes as in `AnchorConfig`)."""

    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    rounded: bool
    fitted_strides: bool
    every_level: bool = False
    offset: float = 0.0

    def per_level(self, num_levels: int) -> tuple[int, ...]:
        """See `AnchorRule`."""
        return (len(self.ratios) * (len(self.sizes) if self.every_level else 1),) * num_levels

    def bases(self, num_levels: int) -> list[Tensor]:
        """See `AnchorRule`: size by size, of each size ratio by ratio."""
        each = [base_anchors(size, self.ratios, rounded=self.rounded) for size in self.sizes]
        return [torch.cat(each)] * num_levels if self.every_level else each

    def positions(self, shapes: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """See `AnchorRule`: every cell."""
        return shapes

    def steps(
        self, strides: Sequence[int], shapes: Sequence[tuple[int, int]], input_shape: tuple[int, int]
    ) -> list[tuple[float, float]]:
        """See `AnchorRule`."""
        return nominal_or_fitted(strides, shapes, input_shape, fitted=self.fitted_strides)


@dataclass(frozen=True)
class OctaveAnchors:
    """Of each level's size, and of sizes up to its double, one anchor for each ratio (RetinaNet, section 4, "Anchors";
    attributes as in `AnchorConfig`)."""

    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    octave_steps: int
    whole_sizes: bool
    rounded: bool
    fitted_strides: bool
    offset: float = 0.0

    def per_level(self, num_levels: int) -> tuple[int, ...]:
        """See `AnchorRule`."""
        return (self.octave_steps * len(self.ratios),) * num_levels

    def bases(self, num_levels: int) -> list[Tensor]:
        """See `AnchorRule`: size by size, of each size ratio by ratio."""
        return [
            torch.cat([base_anchors(size, self.ratios, rounded=self.rounded) for size in self._octave(lowest)])
            for lowest in self.sizes
        ]

    def positions(self, shapes: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """See `AnchorRule`: every cell."""
        return shapes

    def steps(
        self, strides: Sequence[int], shapes: Sequence[tuple[int, int]], input_shape: tuple[int, int]
    ) -> list[tuple[float, float]]:
        """See `AnchorRule`."""
        return nominal_or_fitted(strides, shapes, input_shape, fitted=self.fitted_strides)

    def _octave(self, lowest: float) -> list[float]:
        sizes = [lowest * 2 ** (step / self.octave_steps) for step in range(self.octave_steps)]
        return [float(int(size)) for size in sizes] if self.whole_sizes else sizes


@dataclass(frozen=True)
class PriorAnchors:
    """Anchors of given sides (SSD's default boxes; attributes as in `AnchorConfig`).

    Attributes:
        grid: positions along a side of the input, whatever the map has; 0 = the map's cells.
    """

    priors: tuple[tuple[tuple[float, float], ...], ...]
    spacing: tuple[float, ...] = ()
    fitted_strides: bool = False
    offset: float = 0.5
    grid: int = 0

    def per_level(self, num_levels: int) -> tuple[int, ...]:
        """See `AnchorRule`."""
        return tuple(len(level) for level in self.priors)

    def bases(self, num_levels: int) -> list[Tensor]:
        """See `AnchorRule`: in the order given."""
        sides = [torch.tensor(level, dtype=torch.float32).reshape(-1, 2) for level in self.priors]
        return [torch.cat((-level, level), dim=1) / 2 for level in sides]

    def positions(self, shapes: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """See `AnchorRule`: every cell, or those of the grid."""
        return [(self.grid, self.grid)] * len(shapes) if self.grid else shapes

    def steps(
        self, strides: Sequence[int], shapes: Sequence[tuple[int, int]], input_shape: tuple[int, int]
    ) -> list[tuple[float, float]]:
        """See `AnchorRule`."""
        if self.grid:
            return [(input_shape[0] / self.grid, input_shape[1] / self.grid)] * len(strides)
        if self.fitted_strides:
            return [(input_shape[0] / height, input_shape[1] / width) for height, width in shapes]
        return [(step, step) for step in self.spacing or strides]


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
        For each level [H * W * B_l, 4], position-major, the order of the dense head's flattened output.
    """
    steps, positions = rule.steps(strides, shapes, input_shape), rule.positions(shapes)
    return [
        grid_anchors(base.to(device), shape, step, rule.offset)
        for base, shape, step in zip(rule.bases(len(strides)), positions, steps, strict=True)
    ]
