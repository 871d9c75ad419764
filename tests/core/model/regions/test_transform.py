"""RoI transforms: RoIPool and RoIWarp against nested loops, the call that all share, and what quantisation costs."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_pool

from maskrcnn_core.model.regions.levels import LevelRule, _cut_masked
from maskrcnn_core.model.regions.transform import (
    PyramidRoIAlign,
    PyramidRoIPool,
    PyramidRoIWarp,
    RoITransform,
    whole_cells,
)
from maskrcnn_core.structures import ImageFeatures
from tests.core.model.regions.roi_reference import (
    BOXES,
    IMAGES,
    OUTSIDE,
    STRIDES,
    pyramid,
    slow_roi_align,
    slow_roi_pool,
    slow_roi_warp,
)


def rule(strides: tuple[int, ...]) -> LevelRule:
    return LevelRule(strides, 224.0, 4)


def align(bins: int = 3, strides: tuple[int, ...] = STRIDES, samples: int = 2) -> PyramidRoIAlign:
    return PyramidRoIAlign(bins, samples, True, rule(strides))


def pool(bins: int = 3, strides: tuple[int, ...] = STRIDES) -> PyramidRoIPool:
    return PyramidRoIPool(bins, rule(strides))


def warp(bins: int = 3, strides: tuple[int, ...] = STRIDES, samples: int = 2) -> PyramidRoIWarp:
    return PyramidRoIWarp(bins, samples, rule(strides))


ALL = [align, pool, warp]
Make = Callable[..., PyramidRoIAlign | PyramidRoIPool | PyramidRoIWarp]


@pytest.mark.parametrize("level", range(4))
def test_pool_is_the_slow_reference_and_torchvisions(level: int) -> None:
    features, stride = pyramid()[level], STRIDES[level]
    got = pool(3, (stride,))([features], BOXES, IMAGES)
    for region, (box, image) in enumerate(zip(BOXES, IMAGES, strict=True)):
        torch.testing.assert_close(got[region], slow_roi_pool(features[image], (box / stride).tolist(), 3))
    assert not got[OUTSIDE].any()
    regions = torch.cat((IMAGES[:, None].double(), BOXES), dim=1)
    assert torch.equal(got, roi_pool(features, regions, 3, 1 / stride))


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("reduction", ["average", "max"])
def test_warp_is_the_slow_reference(reduction: str, samples: int, level: int) -> None:
    features, stride = pyramid()[level], STRIDES[level]
    got = PyramidRoIWarp(3, samples, rule((stride,)), reduction)([features], BOXES, IMAGES)
    for region, (box, image) in enumerate(zip(BOXES, IMAGES, strict=True)):
        expected = slow_roi_warp(features[image], (box / stride).tolist(), 3, samples, reduction)
        torch.testing.assert_close(got[region], expected, atol=1e-10, rtol=1e-10)
    assert not got[OUTSIDE].any()


@pytest.mark.parametrize("make", ALL)
def test_each_region_is_cut_from_the_level_of_its_own_size(make: Make) -> None:
    # Three times as large, so that all four levels are used.
    boxes = torch.cat((BOXES, BOXES * 3, BOXES * 0.3))
    images, maps, module = IMAGES.repeat(3), pyramid(), make()
    got = module(maps, boxes, images)
    levels = module.levels.choose(boxes)
    assert levels.unique().tolist() == [0, 1, 2, 3]
    for region, (box, image, level) in enumerate(zip(boxes, images, levels, strict=True)):
        alone = make(3, (STRIDES[level],))([maps[level]], box[None], image[None])
        torch.testing.assert_close(got[region], alone[0], atol=1e-10, rtol=1e-10)


def test_pool_of_masked_levels_is_the_same() -> None:
    maps, module = pyramid()[:4], pool()
    regions = torch.cat((IMAGES[:, None].double(), BOXES), dim=1)
    levels = module.levels.choose(BOXES)
    assert torch.equal(_cut_masked(maps, regions, levels, STRIDES, module._cut), module(maps, BOXES, IMAGES))


def test_whole_cells_by_eye() -> None:
    cells = torch.tensor([[0.4, 0.5, 2.5, 2.4], [-0.4, -0.5, 1.49, 1.5], [3, 3, 3, 3], [3, 3, 1, 2]])
    assert whole_cells(cells).tolist() == [[0, 1, 4, 3], [0, -1, 2, 3], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_align_by_eye() -> None:
    # A ramp along x is sampled at the bins' centres: pixel j's centre holds j + 0.5, and cells are 4 pixels wide.
    ramp = (torch.arange(48.0) * 4 + 2).expand(1, 1, 32, 48)
    maps = [ramp, *(torch.full((1, 1, 32 >> n, 48 >> n), -1.0) for n in (1, 2, 3))]
    got = align(2)(maps, torch.tensor([[20.0, 20, 60, 40]]), torch.tensor([0]))
    torch.testing.assert_close(got, torch.tensor([[[[30.0, 50.0], [30.0, 50.0]]]]))


def test_pool_and_warp_by_eye() -> None:
    # Cells hold their column. 6 to 29 pixels are cells 1.5 to 7.25, rounded 2 to 7: bins of cells 2-4 and 5-7.
    columns = torch.arange(48.0).expand(1, 1, 32, 48)
    box, image = torch.tensor([[6.0, 6, 29, 29]]), torch.tensor([0])
    assert pool(2, (4,))([columns], box, image)[0, 0].tolist() == [[4, 7]] * 2
    torch.testing.assert_close(warp(2, (4,))([columns], box, image)[0, 0], torch.tensor([[3.0, 6.0]] * 2))


@pytest.mark.parametrize("make", ALL)
def test_forward_puts_each_region_back_in_its_place(make: Make) -> None:
    maps = [torch.full((2, 1, 256 // s, 256 // s), float(level)) for level, s in enumerate(STRIDES)]
    for level in maps:
        level[1] += 10
    sides = torch.tensor([200.0, 20, 250, 120, 100, 250])
    boxes = torch.stack((torch.zeros(6), torch.zeros(6), sides, sides), dim=1)
    images = torch.tensor([0, 1, 1, 0, 1, 0])
    # From 224 on P4, from 112 on P3, below that P2.
    expected = torch.tensor([1.0, 10, 12, 1, 10, 2])
    got = make(2)([*maps, maps[0] - 99], boxes, images)
    torch.testing.assert_close(got, expected[:, None, None, None].expand(6, 1, 2, 2))


@pytest.mark.parametrize("samples", [0, 2])
def test_align_passes_its_settings_on(samples: int) -> None:
    features = pyramid()[1]
    module = PyramidRoIAlign(2, samples, False, rule((8,)), "max")
    got = module([features], BOXES, IMAGES)
    assert (module.bins, module.sampling_ratio, module.aligned) == (2, samples, False)
    for region, (box, image) in enumerate(zip(BOXES, IMAGES, strict=True)):
        expected = slow_roi_align(features[image], (box / 8).tolist(), 2, samples, False, "max")
        torch.testing.assert_close(got[region], expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("strides", [STRIDES, (16,)])
def test_regions_are_cut_from_as_many_levels_as_the_rule_has(make: Make, strides: tuple[int, ...]) -> None:
    maps = pyramid()
    assert len(maps) > len(strides)  # further levels are for the dense stage alone
    features = ImageFeatures(maps, (4, 8, 16, 32, 64), torch.zeros(2, 2), torch.zeros(2, 3, 128, 192))
    taken = make(3, strides).maps(features)
    assert [id(level) for level in taken] == [id(level) for level in maps[: len(strides)]]


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("strides", [STRIDES, (16,)])
def test_no_regions(make: Make, strides: tuple[int, ...]) -> None:
    empty = make(7, strides)(pyramid(), torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0).long())
    assert (empty.shape, empty.dtype) == ((0, 3, 7, 7), torch.float64)


@pytest.mark.parametrize("make", ALL)
def test_gradients_reach_the_maps_in_half_precision_too(make: Make) -> None:
    maps = [level.bfloat16().requires_grad_() for level in pyramid(dtype=torch.float32)]
    output = make()(maps, BOXES.float(), IMAGES)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert all(level.grad is not None and level.grad.any() for level in (maps[0], maps[1]))
    full = make()([level.detach().float() for level in maps], BOXES.float(), IMAGES)
    torch.testing.assert_close(output.float(), full, atol=0.02, rtol=0.02)


def scene(shift: float) -> Tensor:
    """[1, 3, 256, 320], smooth, moved by `shift` pixels right and down."""
    y, x = torch.meshgrid(torch.arange(256.0) + 0.5 - shift, torch.arange(320.0) + 0.5 - shift, indexing="ij")
    waves = [(150.0, 300.0, 0.3), (-200.0, 170.0, 1.1), (400.0, -160.0, 2.0)]
    return torch.stack([torch.sin(2 * math.pi * (y / a + x / b) + phase) for a, b, phase in waves])[None]


def drift(module: RoITransform) -> float:
    """Largest change of a region's features, relative to their spread, while image and box move by less than a cell."""
    box, image = torch.tensor([[67.0, 51, 195, 163]]), torch.tensor([0])
    start = module([functional.avg_pool2d(scene(0), 16)], box, image)
    changes = [
        (module([functional.avg_pool2d(scene(shift), 16)], box + shift, image) - start).abs().amax()
        for shift in range(1, 16)
    ]
    return float(torch.stack(changes).max() / start.std())


def test_under_a_shift_below_the_stride_only_aligned_features_stay() -> None:
    """The tutorial's point: "no coordinate quantization"."""
    aligned, pooled, warped = drift(align(7, (16,))), drift(pool(7, (16,))), drift(warp(7, (16,)))
    assert aligned < 0.05
    assert pooled > 0.4
    assert warped > 0.4


@pytest.mark.parametrize("shift", [1.0, 5.0, 7.9, 12.0])
def test_a_shifted_ramp_by_eye(shift: float) -> None:
    # Cells hold the place of their centre in a scene that has moved by `shift`, and the box moves with it: RoIAlign
    # reads the same places. Rounding the box leaves it behind by `shift`, or puts it ahead by the rest of the cell.
    image, box = torch.tensor([0]), torch.tensor([[64.0, 64, 128, 128]])
    still = (torch.arange(20.0) * 16 + 8).expand(1, 1, 20, 20)
    for make, change in ((align, 0.0), (pool, min(shift, 16 - shift)), (warp, min(shift, 16 - shift))):
        module = make(2, (16,))
        before, after = module([still], box, image), module([still - shift], box + shift, image)
        torch.testing.assert_close((after - before).abs(), torch.full((1, 1, 2, 2), change), atol=1e-4, rtol=0)
    torch.testing.assert_close(align(2, (16,))([still], box, image)[0, 0], torch.tensor([[80.0, 112.0]] * 2))
