"""RoIAlign from all levels of a pyramid in one launch, on channels-last maps of any floating type.

A program computes a row of one region's bins. It takes the region's level from a table, so no level has to be looked at
by regions of another, and reads the channels of a cell side by side. Sums are float32, maps and output have the maps'
type. The backward pass adds into float32 maps.

Sampling is that of `model/regions/align.py` (Mask R-CNN, section 3): a fixed number of samples a bin and axis,
bilinear, those within one cell outside of the map take the border's value, those beyond count as 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LEVELS = 4
"""Most levels that a pyramid may have here."""


@triton.jit
def _axis(position, size):
    """Lower and upper cell of a sample and their weights, 0 where the sample is outside."""
    inside = (position >= -1.0) & (position <= size)
    position = tl.minimum(tl.maximum(position, 0.0), size - 1.0)
    lower = tl.floor(position)
    part = position - lower
    cell = lower.to(tl.int32)
    upper = tl.minimum(cell + 1, size - 1)
    low_weight = tl.where(inside, 1.0 - part, 0.0)
    high_weight = tl.where(inside, part, 0.0)
    return cell, upper, low_weight, high_weight


@triton.jit
def _bin_row(
    features,
    output,
    x1,
    y1,
    x2,
    y2,
    height,
    width,
    scale,
    bin_row,
    channels,
    RESOLUTION: tl.constexpr,
    SAMPLES: tl.constexpr,
    ALIGNED: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of bins of a region. Forward: `features` -> `output`; backward: `output` is added into `features`."""
    offset = 0.5 if ALIGNED else 0.0
    left, top = x1 * scale - offset, y1 * scale - offset
    region_width, region_height = (x2 - x1) * scale, (y2 - y1) * scale
    if not ALIGNED:
        region_width, region_height = tl.maximum(region_width, 1.0), tl.maximum(region_height, 1.0)
    step_x, step_y = region_width / (RESOLUTION * SAMPLES), region_height / (RESOLUTION * SAMPLES)
    channel = tl.arange(0, BLOCK)
    real = channel < channels
    for bin_column in range(RESOLUTION):
        element = (bin_row * RESOLUTION + bin_column) * channels + channel
        if BACKWARD:
            total = tl.load(output + element, mask=real, other=0.0).to(tl.float32) / (SAMPLES * SAMPLES)
        else:
            total = tl.zeros([BLOCK], dtype=tl.float32)
        for down in tl.static_range(SAMPLES):
            row0, row1, up, low = _axis(top + (bin_row * SAMPLES + down + 0.5) * step_y, height)
            for across in tl.static_range(SAMPLES):
                column0, column1, near, far = _axis(left + (bin_column * SAMPLES + across + 0.5) * step_x, width)
                at00 = features + (row0 * width + column0) * channels + channel
                at01 = features + (row0 * width + column1) * channels + channel
                at10 = features + (row1 * width + column0) * channels + channel
                at11 = features + (row1 * width + column1) * channels + channel
                if BACKWARD:
                    tl.atomic_add(at00, total * (up * near), mask=real, sem="relaxed")
                    tl.atomic_add(at01, total * (up * far), mask=real, sem="relaxed")
                    tl.atomic_add(at10, total * (low * near), mask=real, sem="relaxed")
                    tl.atomic_add(at11, total * (low * far), mask=real, sem="relaxed")
                else:
                    total += tl.load(at00, mask=real, other=0.0).to(tl.float32) * (up * near)
                    total += tl.load(at01, mask=real, other=0.0).to(tl.float32) * (up * far)
                    total += tl.load(at10, mask=real, other=0.0).to(tl.float32) * (low * near)
                    total += tl.load(at11, mask=real, other=0.0).to(tl.float32) * (low * far)
        if not BACKWARD:
            total = total / (SAMPLES * SAMPLES)
            tl.store(output + element, total.to(output.dtype.element_ty), mask=real)


# Sizes of maps are left as they come: each pattern of multiples of 16 among them would get a kernel of its own.
_SIZES = [f"{name}{level}" for level in range(LEVELS) for name in ("height", "width", "scale")]


@triton.jit(do_not_specialize=_SIZES)
def _pyramid_rows(
    map0,
    map1,
    map2,
    map3,
    output,
    boxes,
    images,
    levels,
    height0,
    width0,
    scale0,
    height1,
    width1,
    scale1,
    height2,
    width2,
    scale2,
    height3,
    width3,
    scale3,
    channels,
    NUM_LEVELS: tl.constexpr,
    RESOLUTION: tl.constexpr,
    SAMPLES: tl.constexpr,
    ALIGNED: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    region, bin_row = program // RESOLUTION, program % RESOLUTION
    x1, y1 = tl.load(boxes + region * 4), tl.load(boxes + region * 4 + 1)
    x2, y2 = tl.load(boxes + region * 4 + 2), tl.load(boxes + region * 4 + 3)
    image, level = tl.load(images + region), tl.load(levels + region)
    cut = output + region.to(tl.int64) * (RESOLUTION * RESOLUTION) * channels
    if level == 0:
        own = map0 + image * height0 * width0 * channels
        _bin_row(
            own, cut, x1, y1, x2, y2, height0, width0, scale0, bin_row, channels,
            RESOLUTION, SAMPLES, ALIGNED, BACKWARD, BLOCK,
        )  # fmt: skip
    if NUM_LEVELS > 1:  # noqa: SIM102 - this is decided when the kernel is compiled
        if level == 1:
            own = map1 + image * height1 * width1 * channels
            _bin_row(
                own, cut, x1, y1, x2, y2, height1, width1, scale1, bin_row, channels,
                RESOLUTION, SAMPLES, ALIGNED, BACKWARD, BLOCK,
            )  # fmt: skip
    if NUM_LEVELS > 2:  # noqa: SIM102 - this is decided when the kernel is compiled
        if level == 2:
            own = map2 + image * height2 * width2 * channels
            _bin_row(
                own, cut, x1, y1, x2, y2, height2, width2, scale2, bin_row, channels,
                RESOLUTION, SAMPLES, ALIGNED, BACKWARD, BLOCK,
            )  # fmt: skip
    if NUM_LEVELS > 3:  # noqa: SIM102 - this is decided when the kernel is compiled
        if level == 3:
            own = map3 + image * height3 * width3 * channels
            _bin_row(
                own, cut, x1, y1, x2, y2, height3, width3, scale3, bin_row, channels,
                RESOLUTION, SAMPLES, ALIGNED, BACKWARD, BLOCK,
            )  # fmt: skip


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
    """Features of each region, cut from its own level; with gradients for the maps.

    Args:
        maps: one [N, C, H_l, W_l] for each stride, at most `LEVELS`, all of one type; fastest channels last.
        boxes: [R, 4] float32 input pixels; image_index, levels: [R] int64.
        resolution: bins a side; samples: of a bin along each axis, above 0.
        aligned: sample at pixel centres.

    Returns:
        [R, C, resolution, resolution], channels last.
    """
    features: Tensor = _Align.apply(boxes, image_index, levels, tuple(strides), (resolution, samples, aligned), *maps)
    return features


class _Align(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        boxes: Tensor,
        image_index: Tensor,
        levels: Tensor,
        strides: tuple[int, ...],
        grid: tuple[int, int, bool],
        *maps: Tensor,
    ) -> Tensor:
        resolution = grid[0]
        rows = [_channels_last(level) for level in maps]
        boxes, image_index, levels = boxes.contiguous(), image_index.contiguous(), levels.contiguous()
        output = maps[0].new_empty(len(boxes), resolution, resolution, maps[0].shape[1])
        _launch(rows, output, boxes, image_index, levels, strides, grid, backward=False)
        ctx.save_for_backward(boxes, image_index, levels)
        ctx.strides, ctx.grid = strides, grid
        ctx.shapes, ctx.dtype = [level.shape for level in maps], maps[0].dtype
        return output.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        boxes, image_index, levels = ctx.saved_tensors
        sums = [
            torch.zeros(n, height, width, channels, dtype=torch.float32, device=boxes.device)
            for n, channels, height, width in ctx.shapes
        ]
        given = _channels_last(gradients[0])
        _launch(sums, given, boxes, image_index, levels, ctx.strides, ctx.grid, backward=True)
        return (None,) * 5 + tuple(total.to(ctx.dtype).permute(0, 3, 1, 2) for total in sums)


def _channels_last(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H, W, C], contiguous; a view where the memory has that order already."""
    return x.permute(0, 2, 3, 1).contiguous()


def _launch(
    maps: Sequence[Tensor],
    regions: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    grid: tuple[int, int, bool],
    *,
    backward: bool,
) -> None:
    """The kernel on maps [N, H_l, W_l, C] and regions [R, S, S, C]: forward it fills the regions, backward it adds them
    to the maps."""
    if len(boxes) == 0:
        return
    resolution, samples, aligned = grid
    channels = regions.shape[-1]
    padded = [*maps, *[maps[0]] * (LEVELS - len(maps))]
    sizes = [
        number
        for level, stride in zip(padded, [*strides, *[1] * (LEVELS - len(maps))], strict=True)
        for number in (level.shape[1], level.shape[2], 1.0 / stride)
    ]
    block = triton.next_power_of_2(channels)
    _pyramid_rows[(len(boxes) * resolution,)](
        *padded,
        regions,
        boxes,
        image_index,
        levels,
        *sizes,
        channels,
        NUM_LEVELS=len(maps),
        RESOLUTION=resolution,
        SAMPLES=samples,
        ALIGNED=aligned,
        BACKWARD=backward,
        BLOCK=block,
        num_warps=1 if block <= 256 else 4,
    )
