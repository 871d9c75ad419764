"""Spatial pyramid pooling: nested loops, torch's adaptive maximum, by eye, and the scale of each region."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_pool

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.pyramids.image_pyramid import ImagePyramid
from maskrcnn_core.model.regions.levels import LevelRule
from maskrcnn_core.model.regions.spatial_pyramid import ScaleRule, SpatialPyramid, window_of_cells
from maskrcnn_core.structures import ImageFeatures
from tests.core.model.regions.roi_reference import BOXES, IMAGES, OUTSIDE, STRIDES, pyramid

LEVELS = (1, 2, 3, 6)


def slow_window(box: list[float]) -> tuple[int, int, int, int]:
    """First column, first row, last column, last row, of a box in cells (SPP-net, appendix A)."""
    first = [math.floor(box[axis]) + 1 for axis in (0, 1)]
    last = [math.ceil(box[axis + 2]) - 1 for axis in (0, 1)]
    for axis in (0, 1):
        if last[axis] < first[axis]:
            first[axis] = last[axis] = math.floor((box[axis] + box[axis + 2]) / 2)
    return first[0], first[1], last[0], last[1]


def slow_pyramid(features: Tensor, box: list[float], levels: tuple[int, ...]) -> Tensor:
    """[C, H, W], a box in cells -> [C, parts]."""
    left, top, right, bottom = slow_window(box)
    if right >= 0 and bottom >= 0 and left < features.shape[2] and top < features.shape[1]:
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, features.shape[2] - 1), min(bottom, features.shape[1] - 1)
    width, height = right - left + 1, bottom - top + 1
    parts = []
    for level in levels:
        for i in range(level):
            for j in range(level):
                rows = range(top + math.floor(i * height / level), top + math.ceil((i + 1) * height / level))
                columns = range(left + math.floor(j * width / level), left + math.ceil((j + 1) * width / level))
                cells = [
                    features[:, row, column]
                    for row in rows
                    for column in columns
                    if 0 <= row < features.shape[1] and 0 <= column < features.shape[2]
                ]
                parts.append(torch.stack(cells).amax(dim=0) if cells else torch.zeros(len(features)).to(features))
    return torch.stack(parts, dim=1)


@pytest.mark.parametrize("levels", [LEVELS, (1,), (4, 1), (2, 5)])
@pytest.mark.parametrize("level", [0, 2])
def test_it_is_the_slow_reference(level: int, levels: tuple[int, ...]) -> None:
    features, stride = pyramid()[level], STRIDES[level]
    transform = SpatialPyramid(levels, LevelRule((stride,), 224.0, 4))
    got = transform([features], BOXES, IMAGES)
    assert got.shape == (len(BOXES), 3, transform.bins, 1)
    for region, (box, image) in enumerate(zip(BOXES, IMAGES, strict=True)):
        expected = slow_pyramid(features[image], (box / stride).tolist(), levels)
        torch.testing.assert_close(got[region, :, :, 0], expected, atol=0, rtol=0)
    assert not got[OUTSIDE].any()


@pytest.mark.parametrize("level", range(1, 7))
def test_parts_are_those_of_torchs_adaptive_maximum(level: int) -> None:
    """Of every size of window, in the arithmetic of float32."""
    line = torch.randn(1, 1, 1, 120, generator=torch.Generator().manual_seed(0))
    sides = torch.arange(1, 119)
    # The window of cells 1 to side.
    boxes = torch.stack((torch.zeros(118), torch.full((118,), -0.5), sides + 0.5, torch.full((118,), 0.5)), dim=1)
    transform = SpatialPyramid((level,), LevelRule((1,), 224.0, 4))
    got = transform([line], boxes, torch.zeros(118, dtype=torch.int64))
    for side, parts in zip(sides.tolist(), got, strict=True):
        window = line[:, :, :, 1 : 1 + side]
        expected = functional.adaptive_max_pool2d(window, level)
        assert torch.equal(parts[0, :, 0], expected[0, 0].flatten()), side


def test_one_part_is_the_maximum_of_the_window() -> None:
    features = pyramid()[1]
    got = SpatialPyramid((1,), LevelRule((8,), 224.0, 4))([features], torch.tensor([[8.0, 16, 41, 63]]), IMAGES[:1])
    # Columns 1 < x / 8 < 5.125: 2 to 5. Rows 2 < y / 8 < 7.875: 3 to 7.
    assert torch.equal(got[0, :, 0, 0], features[0, :, 3:8, 2:6].amax(dim=(1, 2)))


def test_windows_by_eye() -> None:
    cells = torch.tensor([[0.0, 0, 3, 3], [0.1, 0.9, 2.1, 4.5], [1.2, 1.2, 1.8, 2.2], [3, 3, 3, 3]])
    assert window_of_cells(cells).tolist() == [[1, 1, 2, 2], [1, 1, 2, 4], [1, 2, 1, 2], [3, 3, 3, 3]]


def test_no_regions_and_gradients() -> None:
    transform = SpatialPyramid(LEVELS, LevelRule(STRIDES, 224.0, 4))
    maps = [level.requires_grad_() for level in pyramid()]
    taken = transform.maps(ImageFeatures(maps, (4, 8, 16, 32, 64), torch.zeros(2, 2), torch.zeros(2, 3, 128, 192)))
    assert len(taken) == 4
    assert transform(taken, BOXES[:0], IMAGES[:0]).shape == (0, 3, 50, 1)
    boxes = torch.tensor([[8.0, 16, 41, 63]], dtype=torch.float64)
    transform(taken, boxes, IMAGES[:1]).sum().backward()
    # Each part hands its gradient to one cell.
    assert maps[0].grad is not None
    assert maps[0].grad.sum() == 3 * 50
    half = transform([level.detach().bfloat16() for level in taken], boxes.float(), IMAGES[:1])
    assert half.dtype == torch.bfloat16


RULE = ScaleRule((1.0, 0.5, 0.25), 16, 224.0)


def test_scales_by_eye() -> None:
    # Sides of 200 are nearest to 224 in the input, of 400 in the half, of 1000 and more in the quarter.
    sides = torch.tensor([20.0, 200, 298, 300, 400, 700, 2000])
    boxes = torch.stack((torch.zeros(7), torch.zeros(7), sides, sides), dim=1)
    assert RULE.choose(boxes).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert RULE.strides == (16, 32, 64)
    with pytest.raises(ConfigError, match="image_scales"):
        ScaleRule((1.0, 0.0), 16, 224.0)


def test_each_region_is_cut_from_its_own_scale() -> None:
    maps = [torch.full((1, 2, 50, 50), float(number + 1)) for number in range(3)]
    sides = torch.tensor([100.0, 1000, 400])
    boxes = torch.stack((torch.zeros(3), torch.zeros(3), sides, sides), dim=1)
    got = SpatialPyramid(LEVELS, RULE)(maps, boxes, torch.zeros(3, dtype=torch.int64))
    assert got[:, 0, 0, 0].tolist() == [1, 3, 2]


def test_an_image_pyramid_keeps_places() -> None:
    """A ramp of places at half and 0.4 of the size: what stood at x stands at x * scale, exactly."""
    places = (torch.arange(101.0) + 0.5).expand(1, 3, 67, 101)
    views = ImagePyramid(8, 16, (1.0, 0.5, 0.4))(places)
    assert [tuple(view.shape[2:]) for view in views] == [(67, 101), (33, 50), (26, 40)]
    assert views[0] is places
    for view, scale in zip(views[1:], (0.5, 0.4), strict=True):
        inside = torch.arange(4.0, view.shape[3] - 4)
        torch.testing.assert_close(view[0, 0, 10, 4:-4], (inside + 0.5) / scale, atol=2e-2, rtol=0)
    with pytest.raises(ConfigError, match="image_scales"):
        ImagePyramid(8, 16, ())


def test_a_window_of_whole_cells_is_roi_pools() -> None:
    """Where both rules take the same cells: half a cell inside of them."""
    features = pyramid(dtype=torch.float32)[1]
    cells = torch.tensor([[2.0, 3, 9, 11], [0, 0, 23, 15]])  # first and last
    boxes = torch.cat((cells[:, :2] - 0.5, cells[:, 2:] + 0.5), dim=1) * 8
    got = SpatialPyramid((6,), LevelRule((8,), 224.0, 4))([features], boxes, torch.tensor([0, 1]))
    regions = torch.cat((torch.tensor([[0.0], [1.0]]), cells * 8), dim=1)
    assert torch.equal(got.flatten(2), roi_pool(features, regions, 6, 1 / 8).flatten(2))
