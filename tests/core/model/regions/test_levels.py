"""Which level a region is cut from, and that every way of cutting level by level gives the same."""

import pytest
import torch
from torch import Tensor
from torchvision.ops.poolers import LevelMapper

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.regions.levels import LevelRule, assign_levels, cut_by_level
from tests.core.model.regions.roi_reference import BOXES, IMAGES, LEVELS, STRIDES, pyramid


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


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        ((4, 8, 16, 32), [0, 1, 2, 3, 3]),
        ((16, 32), [0, 0, 0, 1, 1]),
        ((16,), [0, 0, 0, 0, 0]),
        ((32, 32), [0, 0, 0, 0, 0]),  # two maps of one stride: the first, as torchvision's MobileNet model does it
    ],
)
def test_choice_by_eye(strides: tuple[int, ...], expected: list[int]) -> None:
    sides = torch.tensor([20.0, 120, 250, 500, 1000])
    boxes = torch.stack((torch.zeros(5), torch.zeros(5), sides, sides), dim=1)
    assert LevelRule(strides, 224.0, 4).choose(boxes).tolist() == expected


@pytest.mark.parametrize("strides", [(), (4, 16), (32, 16), (12,), (0,)])
def test_strides_with_a_gap_are_refused(strides: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"strides.*got.*expected powers of two"):
        LevelRule(strides, 224.0, 4)


def mean_cut(features: Tensor, regions: Tensor, stride: float) -> Tensor:
    """Of each region the mean of its image, its box and its stride; nothing where it lies far outside."""
    means = features.mean(dim=(2, 3))[regions[:, 0].long()] * stride + regions[:, 1:].sum(dim=1, keepdim=True)
    return torch.where(regions[:, 1:2] > -1e5, means, 0.0)[:, :, None, None]


def test_masked_and_selected_cuts_are_equal() -> None:
    maps = pyramid()[:4]
    regions = torch.cat((IMAGES[:, None].double(), BOXES), dim=1)
    selected = cut_by_level(maps, BOXES, IMAGES, LEVELS, STRIDES, mean_cut)
    expected = torch.cat(
        [mean_cut(maps[level], regions[i : i + 1], STRIDES[level]) for i, level in enumerate(LEVELS.tolist())]
    )
    torch.testing.assert_close(selected, expected)
    masked = cut_by_level(maps, BOXES, IMAGES, LEVELS, STRIDES, mean_cut, fixed_size=True)
    torch.testing.assert_close(masked, expected)


def test_one_map_is_cut_at_once() -> None:
    features = pyramid()[2]
    regions = torch.cat((IMAGES[:, None].double(), BOXES), dim=1)
    for fixed in (False, True):
        got = cut_by_level([features], BOXES, IMAGES, torch.zeros_like(LEVELS), (16,), mean_cut, fixed_size=fixed)
        assert torch.equal(got, mean_cut(features, regions, 16))
