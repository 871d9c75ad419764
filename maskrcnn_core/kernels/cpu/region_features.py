"""RoIAlign of all levels in one pass, for inference: a bin is a weighted sum of cells, read in the maps' own type and
summed in float32 (`model/regions/align.py` says which cells and weights)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from maskrcnn_core.kernels.cpu.compilation import as_array, compiled, run
from maskrcnn_core.kernels.cpu.vector_lanes import LANES, Lanes

_VECTORS = 4
BLOCK = _VECTORS * LANES
"""Channels that are summed at once; their number must be a multiple."""


def align_regions(
    maps: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    *,
    resolution: int,
    samples: int,
    aligned: bool,
) -> Tensor:
    """Features of each region, cut from its own level.

    Args:
        maps: one [N, C, H_l, W_l] for each stride, channels last, all float32 or all bfloat16, C a multiple of `BLOCK`.
        boxes: [R, 4] float32, input pixels; image_index, levels: [R] int64.
        resolution, samples, aligned: as of `SamplingGrid`; samples > 0.

    Returns:
        [R, C, resolution, resolution] of the maps' type, channels last.
    """
    tables = [level.permute(0, 2, 3, 1).contiguous() for level in maps]
    channels = tables[0].shape[3]
    output = torch.empty(len(boxes), resolution, resolution, channels, dtype=maps[0].dtype)
    levels_of_maps = (
        np.array([table.data_ptr() for table in tables], np.int64),
        np.array([table.shape[1:3] for table in tables], np.int64),
        np.array(strides, np.float32),
    )
    regions = tuple(part.contiguous().numpy() for part in (boxes, image_index, levels))
    rule = samples, np.float32(0.5 if aligned else 0.0), np.float32(0.0 if aligned else 1.0)
    arguments = levels_of_maps, regions, rule, as_array(output)
    run(_align_some, _align_all, *arguments, count=len(boxes))
    return output.permute(0, 3, 1, 2)


@intrinsic  # type: ignore[untyped-decorator]
def _sum(_: Any, like: Any, addresses: Any, weights: Any, count: Any, shift: Any, target: Any) -> Any:
    """For Numba: `BLOCK` channels, `shift` bytes behind each of some addresses, times a weight each, are summed and
    written to an address. `like` is an array of the maps' type."""
    half = like.dtype == types.uint16

    def generate(context: Any, builder: ir.IRBuilder, _: Any, arguments: list[ir.Value]) -> ir.Value:
        _, addresses, weights, count, shift, target = arguments
        lanes = Lanes(builder, half=half)
        step = ir.Constant(shift.type, LANES * (2 if half else 4))
        sums = [cgutils.alloca_once_value(builder, lanes.zero()) for _ in range(_VECTORS)]
        with cgutils.for_range(builder, count) as loop:
            address = builder.add(lanes.entry(addresses, loop.index), shift)
            weight = lanes.spread(lanes.number(weights, loop.index))
            for part, total in enumerate(sums):
                values = lanes.multiply(lanes.load(lanes.at(address, (step, part))), weight)
                builder.store(lanes.add(builder.load(total), values), total)
        for part, total in enumerate(sums):
            lanes.store(builder.load(total), lanes.at(target, (step, part)))
        return context.get_dummy_value()

    return types.void(like, *(types.intp,) * 5), generate


@compiled()
def _axis(low: Any, high: Any, size: int, samples: int, offset: Any, least: Any, cells: Any, weights: Any) -> None:
    """One axis: the two cells of each sample of each bin [resolution, 2 samples], and their weights. Samples more than
    a cell outside of the map count as 0; those within a cell take the border's value."""
    resolution = len(cells)
    length = max(high - low, least)
    step = length / np.float32(resolution * samples)
    share = np.float32(1.0) / np.float32(samples)
    for index in range(resolution * samples):
        position = (low - offset) + (np.float32(index) + np.float32(0.5)) * step
        inside = share if position >= np.float32(-1.0) and position <= np.float32(size) else np.float32(0.0)
        position = min(max(position, np.float32(0.0)), np.float32(size - 1))
        lower = np.int64(position)
        fraction = position - np.float32(lower)
        row, tap = index // samples, 2 * (index % samples)
        cells[row, tap], cells[row, tap + 1] = lower, min(lower + 1, size - 1)
        weights[row, tap], weights[row, tap + 1] = (np.float32(1.0) - fraction) * inside, fraction * inside


@compiled()
def _align_some(levels_of_maps: Any, regions: Any, rule: Any, output: Any, begin: int, end: int) -> None:
    """`align_regions` of some regions.

    Args:
        levels_of_maps: address, size [2] and stride of each level's map.
        regions: boxes [R, 4], images and levels [R].
        rule: samples of a bin and axis, shift of the first of them, least side of a region, in cells.
    """
    bases, sizes, strides = levels_of_maps
    boxes, images, levels = regions
    samples, offset, least = rule
    _, resolution, _, channels = output.shape
    pixel, taps = channels * output.itemsize, 2 * samples
    rows, columns = np.empty((resolution, taps), np.int64), np.empty((resolution, taps), np.int64)
    row_weights, column_weights = np.empty((resolution, taps), np.float32), np.empty((resolution, taps), np.float32)
    addresses, weights = np.empty(taps * taps, np.int64), np.empty(taps * taps, np.float32)
    for region in range(begin, end):
        level = levels[region]
        height, width, stride = sizes[level, 0], sizes[level, 1], strides[level]
        _axis(boxes[region, 1] / stride, boxes[region, 3] / stride, height, samples, offset, least, rows, row_weights)
        _axis(
            boxes[region, 0] / stride, boxes[region, 2] / stride, width, samples, offset, least, columns, column_weights
        )
        base = bases[level] + images[region] * height * width * pixel
        for down in range(resolution):
            for across in range(resolution):
                for i in range(taps):
                    for j in range(taps):
                        addresses[i * taps + j] = base + (rows[down, i] * width + columns[across, j]) * pixel
                        weights[i * taps + j] = row_weights[down, i] * column_weights[across, j]
                target = output.ctypes.data + ((region * resolution + down) * resolution + across) * pixel
                for block in range(channels // BLOCK):
                    shift = block * BLOCK * output.itemsize
                    _sum(output, addresses.ctypes.data, weights.ctypes.data, taps * taps, shift, target + shift)


@compiled(parallel=True)
def _align_all(levels_of_maps: Any, regions: Any, rule: Any, output: Any, count: int, pieces: int) -> None:
    for piece in prange(pieces):
        begin, end = count * piece // pieces, count * (piece + 1) // pieces
        _align_some(levels_of_maps, regions, rule, output, begin, end)
