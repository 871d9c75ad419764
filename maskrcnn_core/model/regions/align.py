"""RoIAlign: bilinear samples at exact positions of a region, averaged or maximised in each bin (Mask R-CNN, section 3).

Four ways to the same numbers. On a CPU with a fixed number of samples, every output bin is a weighted sum of rows of
the channels-last feature table, which is what an embedding bag computes: the loop over channels is contiguous and the
result is channels-last as the heads want it. For inference a loop of ours does the same without writing down which rows
they are. On a GPU a kernel of ours cuts from all levels at once. Elsewhere torchvision's operator does it, once per
level.

The maximum over a bin's samples is the same transform with a bin for each sample, followed by max pooling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor
from torch.nn import functional

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.kernels.cpu.availability import use_loops
from maskrcnn_core.kernels.gpu.availability import use_kernels
from maskrcnn_core.layers.buffers import POOL
from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.model.regions.levels import cut_by_level, in_order

# Most levels of the kernel: its `LEVELS`, which cannot be imported where there is no Triton.
_KERNEL_LEVELS = 4

# The number of channels must be a multiple: `kernels.cpu.region_features.BLOCK`, not imported for the same reason.
_LOOP_CHANNELS = 64

# Samples of adaptive maximum that are in memory at once, in output grids.
_MAX_GRIDS = 256


@dataclass(frozen=True)
class SamplingGrid:
    """Where a region is sampled, and what becomes of a bin's samples.

    Attributes:
        resolution: bins a side of the output.
        sampling_ratio: samples per bin and axis; 0 = as many as the bin has cells of the map.
        aligned: sample at pixel centres (half-pixel shift); false as in Detectron and torchvision, whose regions are
            also at least one cell large.
        reduction: "average" or "max" of a bin's samples (Mask R-CNN, table 2c).
    """

    resolution: int
    sampling_ratio: int
    aligned: bool
    reduction: str = "average"

    def __post_init__(self) -> None:
        if self.reduction not in ("average", "max"):
            raise ConfigError(f"model.regions.reduction: got {self.reduction!r}, expected 'average' or 'max'")


def roi_align(
    maps: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    grid: SamplingGrid,
) -> Tensor:
    """Features of each region, cut from its own level.

    Args:
        maps: one [N, C, H_l, W_l] for each stride.
        boxes: [R, 4] input pixels, R > 0; image_index, levels: [R] int64.

    Returns:
        [R, C, resolution, resolution].
    """
    samples = grid.sampling_ratio
    if grid.reduction == "max" and samples > 0:
        each = SamplingGrid(grid.resolution * samples, 1, grid.aligned)
        return functional.max_pool2d(roi_align(maps, boxes, image_index, levels, strides, each), samples)
    align = _loops_or_kernel(maps, boxes, samples)
    if align is not None:
        return _align_with(align, maps, boxes, image_index, levels, strides, grid)
    if samples > 0 and not boxes.is_cuda and maps[0].dtype in (boxes.dtype, torch.bfloat16, torch.float16):
        return align_by_embedding_bag(maps, boxes, image_index, levels, strides, grid)
    return align_by_operator(maps, boxes, image_index, levels, strides, grid)


def _loops_or_kernel(maps: Sequence[Tensor], boxes: Tensor, samples: int) -> Callable[..., Tensor] | None:
    """Ours for the device, where it fits; None = torch's operators do it."""
    if _fits_loops(maps, boxes, samples):
        from maskrcnn_core.kernels.cpu import region_features as for_cpu

        return for_cpu.align_regions
    if _fits_kernel(maps, boxes, samples):
        from maskrcnn_core.kernels.gpu import region_features as for_gpu

        return for_gpu.align_regions
    return None


def _align_with(
    align: Callable[..., Tensor],
    maps: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    grid: SamplingGrid,
) -> Tensor:
    return align(
        maps,
        boxes.float(),
        image_index,
        levels,
        strides,
        resolution=grid.resolution,
        samples=grid.sampling_ratio,
        aligned=grid.aligned,
    )


def _fits_loops(maps: Sequence[Tensor], boxes: Tensor, samples: int) -> bool:
    """Whether `kernels/cpu/region_features.py` can do it; it has no gradient."""
    (dtype, *others), channels = {level.dtype for level in maps}, maps[0].shape[1]
    return (
        samples > 0
        and not boxes.is_cuda
        and boxes.dtype == torch.float32
        and not others
        and dtype in (torch.float32, torch.bfloat16)
        and channels % _LOOP_CHANNELS == 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and use_loops("roi_align", _loops_find_the_same)
    )


def _loops_find_the_same() -> bool:
    from maskrcnn_core.kernels.cpu.region_features import align_regions

    ramp = torch.arange(_LOOP_CHANNELS * 20, dtype=torch.float32)
    maps = [(ramp * 0.37).cos().view(1, _LOOP_CHANNELS, 4, 5)]
    boxes, first = torch.tensor([[1.0, 2.0, 30.0, 21.0]]), torch.zeros(1, dtype=torch.int64)
    arguments = (maps, boxes, first, first, (8,), SamplingGrid(3, 2, True))
    with torch.inference_mode():
        return torch.allclose(_align_with(align_regions, *arguments), align_by_embedding_bag(*arguments), atol=1e-5)


def _fits_kernel(maps: Sequence[Tensor], boxes: Tensor, samples: int) -> bool:
    """Whether `kernels/region_features.py` can do it; its gradient adds in no fixed order."""
    alike = len({level.dtype for level in maps}) == 1 and len(maps) <= _KERNEL_LEVELS
    return (
        samples > 0 and alike and use_kernels(boxes, "roi_align") and not torch.are_deterministic_algorithms_enabled()
    )


def align_by_operator(
    maps: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    grid: SamplingGrid,
) -> Tensor:
    """`roi_align` by torchvision's operator; the maximum only for adaptive sampling."""

    def cut(features: Tensor, regions: Tensor, stride: float) -> Tensor:
        if grid.reduction == "max":
            return _adaptive_max(features, regions, stride, grid)
        return _operator(features, regions, stride, grid.resolution, grid.sampling_ratio, aligned=grid.aligned)

    return cut_by_level(maps, boxes, image_index, levels, strides, cut, fixed_size=boxes.is_cuda)


def _operator(
    features: Tensor, regions: Tensor, stride: float, size: int | tuple[int, int], sampling_ratio: int, *, aligned: bool
) -> Tensor:
    # Half precision holds no coordinate of a large image: bfloat16 steps by 8 pixels above 1024.
    table = full_precision(features)
    output: Tensor = torchvision.ops.roi_align(
        table, regions.to(table.dtype), size, 1.0 / stride, sampling_ratio, aligned
    )
    return output.to(features.dtype)


def _adaptive_max(features: Tensor, regions: Tensor, stride: float, grid: SamplingGrid) -> Tensor:
    """Maximum over as many samples as a bin has cells: regions with equally many samples are cut together.

    For ablations: it asks the device how many samples there are, which the other transforms never do.
    """
    # Samples of a bin along each axis: [r, 2].
    sides = (regions[:, 3:] - regions[:, 1:3]) / stride
    if not grid.aligned:
        sides = sides.clamp(min=1.0)
    counts = torch.ceil(sides / grid.resolution).clamp(min=0).to(torch.int64)
    output = features.new_zeros(len(regions), features.shape[1], grid.resolution, grid.resolution)
    features = features.contiguous()  # once, instead of within every call of the operator
    for across, down in counts.unique(dim=0).tolist():
        if across * down == 0:
            continue
        members = ((counts[:, 0] == across) & (counts[:, 1] == down)).nonzero()[:, 0]
        for part in torch.split(members, max(1, _MAX_GRIDS // (across * down))):
            size = (grid.resolution * down, grid.resolution * across)
            samples = _operator(features, regions[part], stride, size, 1, aligned=grid.aligned)
            output = output.index_copy(0, part, functional.max_pool2d(samples, (down, across)))
    return output


def align_by_embedding_bag(
    maps: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    grid: SamplingGrid,
) -> Tensor:
    """`roi_align` as sums of table rows: average of a fixed number of samples; maps of the boxes' type, or of half
    precision, whose sums are in that of the boxes."""
    channels, bins = maps[0].shape[1], grid.resolution**2
    pieces, members = [], []
    for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        chosen = (levels == level).nonzero()[:, 0]
        if len(chosen) == 0:
            continue
        # Table rows and weights of each bin: [r, bins, taps].
        height, width = features.shape[-2:]
        index, weights = bilinear_taps(
            boxes[chosen] / stride, height, width, grid.resolution, grid.sampling_ratio, aligned=grid.aligned
        )
        index = index + (image_index[chosen] * (height * width))[:, None, None]
        table = _in_precision(features.permute(0, 2, 3, 1), boxes.dtype).reshape(-1, channels)
        # Their weighted sums: [r, bins, C].
        taps = index.shape[-1]
        pieces.append(
            functional.embedding_bag(index.view(-1, taps), table, mode="sum", per_sample_weights=weights.view(-1, taps))
            .to(features.dtype)
            .view(len(chosen), bins, channels)
        )
        members.append(chosen)
    output = in_order(pieces, members)
    return output.view(len(boxes), grid.resolution, grid.resolution, channels).permute(0, 3, 1, 2)


def _in_precision(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Half-precision features in the type of the sums; for inference in memory that is used again (`buffers.py`)."""
    if features.dtype == dtype or torch.is_grad_enabled():
        return features.to(dtype)
    return POOL.empty(features.shape, dtype).copy_(features)


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
    # Cells and weights of each axis: [R, resolution, 2 * sampling_ratio].
    y_index, y_weight = _axis_taps(boxes[:, 1], boxes[:, 3], height, resolution, sampling_ratio, aligned=aligned)
    x_index, x_weight = _axis_taps(boxes[:, 0], boxes[:, 2], width, resolution, sampling_ratio, aligned=aligned)
    # All pairs of a row and a column: [R, resolution, resolution, rows, columns].
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
    # Where each sample lies: [R, resolution * sampling_ratio].
    steps = torch.arange(resolution * sampling_ratio, dtype=low.dtype, device=low.device)
    positions = start[:, None] + (steps + 0.5) * (length / (resolution * sampling_ratio))[:, None]
    inside = (positions >= -1.0) & (positions <= size)
    positions = positions.clamp(min=0.0, max=size - 1.0)
    # The two cells around it, and how much each counts.
    lower = positions.floor()
    fraction = positions - lower
    lower_index = lower.to(torch.int64)
    upper_index = (lower_index + 1).clamp(max=size - 1)
    share = inside.to(low.dtype) / sampling_ratio
    index = torch.stack((lower_index, upper_index), dim=-1)
    weight = torch.stack(((1.0 - fraction) * share, fraction * share), dim=-1)
    shape = (len(low), resolution, 2 * sampling_ratio)
    return index.reshape(shape), weight.reshape(shape)
