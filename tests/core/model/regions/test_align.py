"""RoIAlign: every way against nested loops and torchvision's operator; average and maximum."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align as torchvision_roi_align

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.regions import align as module
from maskrcnn_core.model.regions.align import (
    SamplingGrid,
    align_by_embedding_bag,
    align_by_operator,
    bilinear_taps,
    roi_align,
)
from maskrcnn_core.model.regions.levels import _cut_masked
from tests.core.model.regions.roi_reference import BOXES, IMAGES, LEVELS, OUTSIDE, STRIDES, pyramid, slow_roi_align

Way = Callable[[list[Tensor], Tensor, Tensor, Tensor, tuple[int, ...], SamplingGrid], Tensor]


def align_masked(
    maps: list[Tensor], boxes: Tensor, images: Tensor, levels: Tensor, strides: tuple[int, ...], grid: SamplingGrid
) -> Tensor:
    """The operator as on a GPU, where every level cuts every region."""

    def cut(features: Tensor, regions: Tensor, stride: float) -> Tensor:
        if grid.reduction == "max":
            return module._adaptive_max(features, regions, stride, grid)
        return module._operator(features, regions, stride, grid.resolution, grid.sampling_ratio, aligned=grid.aligned)

    regions = torch.cat((images[:, None].to(boxes.dtype), boxes), dim=1)
    return _cut_masked(maps, regions, levels, strides, cut)


WAYS = [align_by_embedding_bag, align_by_operator, align_masked]


def assert_is_the_slow_reference(got: Tensor, maps: list[Tensor], grid: SamplingGrid) -> None:
    for region, (box, image, level) in enumerate(zip(BOXES, IMAGES, LEVELS, strict=True)):
        cells = (box / STRIDES[level]).tolist()
        expected = slow_roi_align(
            maps[level][image], cells, grid.resolution, grid.sampling_ratio, grid.aligned, grid.reduction
        )
        torch.testing.assert_close(got[region], expected, atol=1e-10, rtol=1e-10)
    assert not got[OUTSIDE].any()
    assert got[:OUTSIDE].abs().amax(dim=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_is_the_slow_reference(way: Way, aligned: bool, format: torch.memory_format) -> None:
    maps = [level.contiguous(memory_format=format) for level in pyramid()[:4]]
    grid = SamplingGrid(3, 2, aligned)
    assert_is_the_slow_reference(way(maps, BOXES, IMAGES, LEVELS, STRIDES, grid), maps, grid)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("samples", [0, 1, 2, 3])
@pytest.mark.parametrize("reduction", ["average", "max"])
def test_any_sampling_is_the_slow_reference(reduction: str, samples: int, aligned: bool) -> None:
    maps, grid = pyramid()[:4], SamplingGrid(3, samples, aligned, reduction)
    assert_is_the_slow_reference(roi_align(maps, BOXES, IMAGES, LEVELS, STRIDES, grid), maps, grid)


@pytest.mark.parametrize("aligned", [True, False])
def test_adaptive_maximum_in_small_parts_and_masked(aligned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, grid = pyramid()[:4], SamplingGrid(3, 0, aligned, "max")
    whole = roi_align(maps, BOXES, IMAGES, LEVELS, STRIDES, grid)
    torch.testing.assert_close(align_masked(maps, BOXES, IMAGES, LEVELS, STRIDES, grid), whole)
    monkeypatch.setattr(module, "_MAX_GRIDS", 2)
    assert torch.equal(roi_align(maps, BOXES, IMAGES, LEVELS, STRIDES, grid), whole)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("resolution", "sampling_ratio"), [(7, 2), (14, 2), (2, 1), (1, 3)])
def test_is_torchvisions_on_each_level(aligned: bool, resolution: int, sampling_ratio: int) -> None:
    maps, grid = pyramid()[:4], SamplingGrid(resolution, sampling_ratio, aligned)
    regions = torch.cat((IMAGES[:, None].double(), BOXES), dim=1)
    for level, stride in enumerate(STRIDES):
        levels = torch.full_like(LEVELS, level)
        expected = torchvision_roi_align(maps[level], regions, resolution, 1 / stride, sampling_ratio, aligned)
        for way in WAYS:
            got = way(maps, BOXES, IMAGES, levels, STRIDES, grid)
            torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("aligned", [True, False])
def test_gradients_of_all_ways_are_equal(aligned: bool) -> None:
    gradients = []
    for way in WAYS:
        maps = [level.requires_grad_() for level in pyramid()[:4]]
        output = way(maps, BOXES, IMAGES, LEVELS, STRIDES, SamplingGrid(3, 2, aligned))
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
        gradients.append(torch.autograd.grad((output * weights).sum(), maps))
    for one, *others in zip(*gradients, strict=True):
        assert one.any()
        for other in others:
            torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("samples", [0, 2])
def test_maximum_has_the_gradient_of_its_best_samples(samples: int) -> None:
    features = pyramid(channels=1)[0][:, :, :6, :6].clone().requires_grad_()
    boxes, images = BOXES[:1] / 2, torch.zeros(1, dtype=torch.int64)
    grid = SamplingGrid(2, samples, True, "max")

    def forward(maps: Tensor) -> Tensor:
        return roi_align([maps], boxes, images, images, (4,), grid)

    assert torch.autograd.gradcheck(forward, (features,))


@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("reduction", ["average", "max"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_keep_full_precision_coordinates(dtype: torch.dtype, reduction: str, samples: int) -> None:
    # In bfloat16 the corners 1027 and 1093 would be 1024 and 1096, three quarters of a cell away.
    ramp = torch.arange(300.0)
    features = (ramp / 256).to(dtype).expand(1, 1, 300, 300)
    boxes, images = torch.tensor([[1027.0, 1027, 1093, 1093]]), torch.zeros(1, dtype=torch.int64)
    grid = SamplingGrid(7, samples, True, reduction)
    got = roi_align([features], boxes, images, images, (4,), grid)
    expected = roi_align([features.float()], boxes, images, images, (4,), grid)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected.to(dtype))


def test_maximum_by_eye() -> None:
    # One bin over cells 0 and 1 with two samples at their centres: average 2, maximum 3.
    features = torch.tensor([[[[1.0, 3.0], [1.0, 3.0]]]])
    boxes, images = torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([0])
    for samples in (2, 0):
        average, largest = (
            roi_align([features], boxes, images, images, (4,), SamplingGrid(1, samples, True, reduction)).item()
            for reduction in ("average", "max")
        )
        assert (average, largest) == (2.0, 3.0)


def test_unknown_reduction_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.regions\.reduction: got 'mean', expected 'average' or 'max'"):
        SamplingGrid(7, 2, True, "mean")


def test_weights_of_a_bin_inside_sum_to_one() -> None:
    boxes = torch.tensor([[2.0, 1, 7, 6], [1.5, 1.5, 1.75, 3]])
    index, weights = bilinear_taps(boxes, 8, 9, 3, 2, aligned=True)
    assert index.shape == weights.shape == (2, 9, 16)
    assert index.min() >= 0
    assert index.max() < 72
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 9))


def test_average_is_channels_last_for_the_heads() -> None:
    maps = [level.contiguous(memory_format=torch.channels_last) for level in pyramid()[:4]]
    for levels in (LEVELS, torch.zeros_like(LEVELS)):
        got = roi_align(maps, BOXES, IMAGES, levels, STRIDES, SamplingGrid(3, 2, True))
        assert got.is_contiguous(memory_format=torch.channels_last)
    pooled = functional.avg_pool2d(
        roi_align(maps, BOXES, IMAGES, LEVELS, STRIDES, SamplingGrid(6, 1, True)), 2
    )  # the average of two samples an axis is that of the two bins with one sample each
    torch.testing.assert_close(pooled, roi_align(maps, BOXES, IMAGES, LEVELS, STRIDES, SamplingGrid(3, 2, True)))
