"""RoIAlign: both ways against nested loops and torchvision's operator; which level a region is cut from."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from maskrcnn_core.model.roi_transform import PyramidRoIAlign, assign_levels, bilinear_taps

STRIDES = (4, 8, 16, 32)


def transform(aligned: bool, resolution: int = 3, sampling_ratio: int = 2) -> PyramidRoIAlign:
    return PyramidRoIAlign(resolution, sampling_ratio, aligned, STRIDES, 224.0, 4)


def sampled(features: Tensor, y: float, x: float) -> Tensor:
    """[C, H, W] at one point: zero beyond one cell outside, the border's value within it, bilinear inside."""
    height, width = features.shape[-2:]
    if y < -1 or y > height or x < -1 or x > width:
        return torch.zeros(len(features), dtype=features.dtype)
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = (1 - dx) * features[:, top, left] + dx * features[:, top, right]
    lower = (1 - dx) * features[:, bottom, left] + dx * features[:, bottom, right]
    return (1 - dy) * upper + dy * lower


def slow_roi_align(features: Tensor, box: list[float], resolution: int, samples: int, aligned: bool) -> Tensor:
    """One region, in cells of the map, by nested loops (Mask R-CNN, figure 3)."""
    offset = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (value - offset for value in box)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    output = torch.zeros(len(features), resolution, resolution, dtype=features.dtype)
    for i in range(resolution):
        for j in range(resolution):
            for a in range(samples):
                for b in range(samples):
                    y = y1 + (i + (a + 0.5) / samples) * height / resolution
                    x = x1 + (j + (b + 0.5) / samples) * width / resolution
                    output[:, i, j] += sampled(features, y, x) / samples**2
    return output


def pyramid(channels: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Of a 128 x 192 input, two images; a fifth level that is not to be used."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(128 // stride, 192 // stride) for stride in (*STRIDES, 64)]
    return [torch.randn(2, channels, *size, generator=generator, dtype=dtype) for size in sizes]


BOXES = torch.tensor(
    [
        [10.0, 12, 50, 40],
        [0, 0, 192, 128],
        [3, 90, 190, 127],
        [-40, -30, 30, 20],  # beyond the left and upper border
        [150, 100, 260, 200],  # beyond the right and lower border
        [400, 400, 460, 470],  # wholly outside
        [20, 20, 20.3, 20.2],  # smaller than a cell
        [60, 60, 60, 60],  # empty
        [0, 0, 192, 3],
        [-301.3, -299.1, 503.7, 498.9],
    ],
    dtype=torch.float64,
)
IMAGES = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
LEVELS = torch.tensor([0, 3, 2, 0, 1, 1, 0, 2, 1, 3])


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("way", ["_by_embedding_bag", "_by_operator"])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_is_the_slow_reference(way: str, aligned: bool, format: torch.memory_format) -> None:
    maps = [level.contiguous(memory_format=format) for level in pyramid()[:4]]
    got = getattr(transform(aligned), way)(maps, BOXES, IMAGES, LEVELS)
    for region, (box, image, level) in enumerate(zip(BOXES, IMAGES, LEVELS, strict=True)):
        cells = (box / STRIDES[level]).tolist()
        expected = slow_roi_align(maps[level][image], cells, 3, 2, aligned)
        torch.testing.assert_close(got[region], expected, atol=1e-10, rtol=1e-10)
    assert not got[5].any()
    assert got[:5].abs().amax(dim=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("resolution", "sampling_ratio"), [(7, 2), (14, 2), (2, 1), (1, 3)])
def test_is_torchvisions_on_each_level(aligned: bool, resolution: int, sampling_ratio: int) -> None:
    maps, module = pyramid()[:4], transform(aligned, resolution, sampling_ratio)
    for level, stride in enumerate(STRIDES):
        levels = torch.full_like(LEVELS, level)
        regions = torch.cat((IMAGES[:, None].double(), BOXES), dim=1)
        expected = roi_align(maps[level], regions, resolution, 1 / stride, sampling_ratio, aligned)
        for way in (module._by_embedding_bag, module._by_operator):
            torch.testing.assert_close(way(maps, BOXES, IMAGES, levels), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("aligned", [True, False])
def test_gradients_of_both_ways_are_equal(aligned: bool) -> None:
    gradients = []
    for way in ("_by_embedding_bag", "_by_operator"):
        maps = [level.requires_grad_() for level in pyramid()[:4]]
        output = getattr(transform(aligned), way)(maps, BOXES, IMAGES, LEVELS)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
        gradients.append(torch.autograd.grad((output * weights).sum(), maps))
    for one, other in zip(*gradients, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_forward_by_eye() -> None:
    # A ramp along x is sampled at the bins' centres: pixel j's centre holds j + 0.5, and cells are 4 pixels wide.
    ramp = (torch.arange(48.0) * 4 + 2).expand(1, 1, 32, 48)
    maps = [ramp, *(torch.full((1, 1, 32 >> n, 48 >> n), -1.0) for n in (1, 2, 3))]
    got = transform(True, resolution=2)(maps, torch.tensor([[20.0, 20, 60, 40]]), torch.tensor([0]))
    torch.testing.assert_close(got, torch.tensor([[[[30.0, 50.0], [30.0, 50.0]]]]))


def test_forward_puts_each_region_back_in_its_place() -> None:
    maps = [torch.full((2, 1, 256 // s, 256 // s), float(level)) for level, s in enumerate(STRIDES)]
    for level in maps:
        level[1] += 10
    sides = torch.tensor([200.0, 20, 250, 120, 100, 250])
    boxes = torch.stack((torch.zeros(6), torch.zeros(6), sides, sides), dim=1)
    images = torch.tensor([0, 1, 1, 0, 1, 0])
    # From 224 on P4, from 112 on P3, below that P2.
    expected = torch.tensor([1.0, 10, 12, 1, 10, 2])
    for sampling_ratio in (2, 0):
        got = transform(True, 2, sampling_ratio)([*maps, maps[0] - 99], boxes, images)
        torch.testing.assert_close(got, expected[:, None, None, None].expand(6, 1, 2, 2))


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_no_regions(sampling_ratio: int) -> None:
    maps = pyramid()
    empty = transform(True, 7, sampling_ratio)(maps, torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0).long())
    assert (empty.shape, empty.dtype) == ((0, 3, 7, 7), torch.float64)


def test_levels_are_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(500, 2, generator=generator) * 100
    sides = 2 ** (torch.rand(500, 2, generator=generator) * 10)
    exact = torch.tensor([0.0, 1, 55.9, 56, 111.9, 112, 223.9, 224, 447.9, 448, 896])[:, None].expand(-1, 2)
    boxes = torch.cat((torch.cat((corners, torch.zeros(11, 2))), torch.cat((corners + sides, exact))), dim=1)
    got = assign_levels(boxes, canonical_size=224.0, canonical_level=4, lowest=2, highest=5)
    assert torch.equal(got, LevelMapper(2, 5, 224, 4)([boxes]))
    assert got[-11:].tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert got.unique().tolist() == [0, 1, 2, 3]


def test_weights_of_a_bin_inside_sum_to_one() -> None:
    boxes = torch.tensor([[2.0, 1, 7, 6], [1.5, 1.5, 1.75, 3]])
    index, weights = bilinear_taps(boxes, 8, 9, 3, 2, aligned=True)
    assert index.shape == weights.shape == (2, 9, 16)
    assert index.min() >= 0
    assert index.max() < 72
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 9))
