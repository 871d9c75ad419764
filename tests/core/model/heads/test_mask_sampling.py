"""Masks on regions of any size: torchvision's numbers, at a cost that does not depend on the size."""

import pytest
import torch
import torchvision
from torch import Tensor

from maskrcnn_core.data.coco.dataset import CocoImage, CocoObject
from maskrcnn_core.data.targets import object_targets, pad_targets
from maskrcnn_core.model.heads import mask_sampling
from maskrcnn_core.model.heads.mask import mask_targets
from maskrcnn_core.model.heads.mask_sampling import axis_weights, sampled_crops
from maskrcnn_core.structures import Targets

BINS = 14


def by_operator(crops: Tensor, regions: Tensor) -> Tensor:
    rois = torch.cat((torch.arange(len(regions))[:, None].float(), regions), dim=1)
    found: Tensor = torchvision.ops.roi_align(crops[:, None], rois, BINS, 1.0, -1, True)[:, 0]
    return found


def regions_of(count: int, side: float, times: float, generator: torch.Generator) -> Tensor:
    """Regions around and beyond a crop of `side` cells, up to `times` as long."""
    start = (torch.rand(count, 2, generator=generator) * 2.0 - 0.7) * side
    lengths = torch.rand(count, 2, generator=generator) ** 3 * side * times
    return torch.cat((start - lengths * torch.rand(count, 2, generator=generator), start + lengths), dim=1)


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("cells", [(1, 4), (7, 5), (30, 33), (112, 112)])
def test_is_torchvisions_operator(cells: tuple[int, int], fixed_size: bool) -> None:
    generator = torch.Generator().manual_seed(cells[0])
    crops, regions = torch.rand(60, *cells, generator=generator), regions_of(60, max(cells), 12.0, generator)
    counts = ((regions[:, 2:] - regions[:, :2]) / BINS).ceil()
    expected = by_operator(crops, regions)
    found = sampled_crops(crops, regions, BINS, fixed_size=fixed_size)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    # By the weights alone, also where the operator would be asked.
    torch.testing.assert_close(mask_sampling._weighted(crops, regions, counts, BINS), expected, atol=2e-5, rtol=1e-4)
    if cells == (112, 112):
        few = (counts <= mask_sampling._MOST_SAMPLES).all(dim=1)
        assert few.any()
        assert not few.all()
        assert found[few].equal(expected[few])  # to the bit


def test_weights_by_eye() -> None:
    # One bin over cells 0 .. 2 of 4 with two samples, at 0.5 and 1.5, that is, in the middle of the cells 0 and 1.
    weights = axis_weights(torch.tensor([0.0]), torch.tensor([2.0]), torch.tensor([2]), 4, 1)
    assert weights.tolist() == [[[0.5, 0.5, 0.0, 0.0]]]
    # Four samples from -2 to 2, at -1.5, -0.5, 0.5, 1.5: the first is more than a cell beyond, the second within one.
    weights = axis_weights(torch.tensor([-2.0]), torch.tensor([2.0]), torch.tensor([4]), 4, 1)
    assert weights.tolist() == [[[0.5, 0.25, 0.0, 0.0]]]
    # A sample between the last cell and one cell further is the last cell's; one at a quarter is shared.
    weights = axis_weights(torch.tensor([3.25]), torch.tensor([4.25]), torch.tensor([1]), 4, 1)
    assert weights.tolist() == [[[0.0, 0.0, 0.0, 1.0]]]
    weights = axis_weights(torch.tensor([1.25]), torch.tensor([2.25]), torch.tensor([1]), 4, 1)
    assert weights.tolist() == [[[0.0, 0.75, 0.25, 0.0]]]


@pytest.mark.parametrize("fixed_size", [False, True])
def test_a_region_without_extent_or_sense_costs_nothing(fixed_size: bool) -> None:
    crops = torch.ones(5, 6, 6)
    regions = torch.tensor(
        [
            [3.0, 3, 3, 3],
            [5.0, 5, 1, 1],
            [3.0, 0, 3, 1e9],  # without width, 10^9 cells high
            [-1e12, -1e12, 1e12, 1e12],
            [torch.nan, 0, 1, 1],
        ]
    )
    found = sampled_crops(crops, regions, BINS, fixed_size=fixed_size)
    assert not found[:3].any()
    assert torch.isfinite(found[:4]).all()
    assert found[3].sum() < 1e-3


def loose(box: float, mask: float, size: int) -> Targets:
    polygon = [[100.0, 100.0, 100.0 + mask, 100.0, 100.0 + mask, 100.0 + mask, 100.0, 100.0 + mask]]
    item = CocoObject(1, 1, (50.0, 50.0, 50.0 + box, 50.0 + box), 1.0, False, polygon, None)
    image = CocoImage(1, "x", 1100, 1100, (item,))
    return pad_targets([object_targets(image, {1: 0}, input_size=(800, 800), mask_size=size)])


class Watch:
    """The most samples of a bin that roi_align is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0.0
        align = torchvision.ops.roi_align

        def watched(maps: Tensor, rois: Tensor, size: int, scale: float, ratio: int, aligned: bool) -> Tensor:
            grid = ((rois[:, 3:] - rois[:, 1:3]) / size).ceil()
            self.most = max(self.most, float(grid.prod(dim=1).max()))
            return align(maps, rois, size, scale, ratio, aligned)

        monkeypatch.setattr(torchvision.ops, "roi_align", watched)


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("size", [112, 0])
@pytest.mark.parametrize(("box", "mask"), [(600.0, 600.0), (600.0, 60.0), (600.0, 6.0), (600.0, 2.0), (1000.0, 1.0)])
def test_a_box_much_larger_than_its_mask(
    box: float, mask: float, size: int, fixed_size: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets, zeros = loose(box, mask, size), torch.zeros(16, dtype=torch.int64)
    boxes = targets.boxes[0].repeat(16, 1) + torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    watch = Watch(monkeypatch)
    wanted = mask_targets(targets, boxes, zeros, zeros, 28, aligned=True, fixed_size=fixed_size)
    assert watch.most <= mask_sampling._MOST_SAMPLES**2
    # Each target holds the object's area in units of the region's, but for what lies outside of the region.
    area = (mask * 800 / 1100) ** 2
    regions = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    if 2 < mask < box:
        torch.testing.assert_close(wanted.mean(dim=(1, 2)), area / regions, rtol=0.4 if mask < 10 else 0.05, atol=1e-6)
    assert (wanted.amax(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("fixed_size", [False, True])
def test_what_only_fills_up_is_not_related_to_an_object(fixed_size: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    targets, zeros = loose(600.0, 1.0, 112), torch.zeros(3, dtype=torch.int64)
    boxes = torch.tensor([[36.0, 36, 470, 470], [0.0, 0, 800, 800], [72.0, 72, 73, 73]])
    seen: list[torch.Tensor] = []
    align = torchvision.ops.roi_align

    def watched(maps: torch.Tensor, rois: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(rois)
        return align(maps, rois, *rest)

    monkeypatch.setattr(torchvision.ops, "roi_align", watched)
    real = torch.tensor([False, False, True])
    some = mask_targets(targets, boxes, zeros, zeros, 28, aligned=True, real=real, fixed_size=fixed_size)
    assert seen[0][:2, 1:].tolist() == [[0.0, 0.0, 112.0, 112.0]] * 2  # the unit box on the unit box
    alone = mask_targets(targets, boxes[2:], zeros[2:], zeros[2:], 28, aligned=True, fixed_size=fixed_size)
    assert some[2].equal(alone[0])
