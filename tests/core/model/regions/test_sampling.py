"""Which regions are learnt on: the hardest of an image, by eye and against a loop; and what each adds to the loss."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from maskrcnn_core.model.box_coding import DeltaCoding
from maskrcnn_core.model.heads.box import RoISamples, box_losses, losses_of_regions
from maskrcnn_core.model.regions.sampling import SamplingRule, every_region, hardest_regions, sample_regions
from maskrcnn_core.structures import Proposals, Targets


def rule(batch_size: int = 4, overlap: float = 1.0) -> SamplingRule:
    return SamplingRule(0.5, batch_size, 0.25, True, 0.7, hardest=True, hardest_nms_overlap=overlap)


def scene(count: int = 20, objects: int = 3) -> tuple[Proposals, Targets]:
    generator = torch.Generator().manual_seed(0)
    corners = 80 * torch.rand(2, count + objects, 2, generator=generator)
    boxes = torch.cat((corners, corners + 20 + 30 * torch.rand(2, count + objects, 2, generator=generator)), dim=2)
    real = torch.tensor([[True] * objects, [True] * (objects - 1) + [False]])
    targets = Targets(boxes[:, count:], torch.arange(objects).expand(2, objects), real, torch.zeros_like(real))
    return Proposals(boxes[:, :count], torch.rand(2, count, generator=generator), torch.tensor([count, 12])), targets


def test_every_region_stands_in_order() -> None:
    proposals, targets = scene()
    every = every_region(proposals, targets, 3, rule(), fixed_size=False)
    assert torch.equal(every.boxes, torch.cat((proposals.boxes, targets.boxes), dim=1))
    assert every.valid.sum(dim=1).tolist() == [23, 14]
    # The objects themselves are positive, each its own.
    assert every.objects[0, 20:].tolist() == [0, 1, 2]
    assert every.labels[0, 20:].tolist() == [0, 1, 2]
    assert bool(every.positive[0, 20:].all())
    assert not bool((every.positive & ~every.valid).any())


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("overlap", [1.0, 0.3])
def test_the_hardest_are_those_of_a_loop(overlap: float, fixed_size: bool) -> None:
    proposals, targets = scene()
    asked = rule(6, overlap)
    every = every_region(proposals, targets, 3, asked, fixed_size=fixed_size)
    losses = torch.rand(2, 23, generator=torch.Generator().manual_seed(1))
    got = hardest_regions(every, losses, asked, fixed_size=fixed_size)
    for image in range(2):
        kept: list[int] = []
        for slot in losses[image].argsort(descending=True).tolist():
            others = every.boxes[image, kept]
            apart = overlap == 1 or not bool((box_iou(every.boxes[image, slot][None], others) > overlap).any())
            if bool(every.valid[image, slot]) and apart:
                kept.append(slot)
        kept = kept[:6]
        expected = {tuple(every.boxes[image, slot].tolist()) for slot in kept}
        assert {tuple(box.tolist()) for box in got.boxes[image][got.valid[image]]} == expected
        assert int(got.positive[image].sum()) == sum(bool(every.positive[image, slot]) for slot in kept)
        # Positives first, then negatives, then empty slots.
        order = (got.positive[image].int() + got.valid[image].int()).tolist()
        assert order == sorted(order, reverse=True)


def test_few_and_none() -> None:
    proposals, targets = scene(count=2, objects=1)
    every = every_region(proposals, targets, 3, rule(50), fixed_size=False)
    got = hardest_regions(every, torch.rand(2, 3), rule(50), fixed_size=False)
    assert got.boxes.shape == (2, 3, 4)
    none = Proposals(proposals.boxes, proposals.scores, torch.zeros(2, dtype=torch.int64))
    nobody = Targets(targets.boxes, targets.labels, torch.zeros_like(targets.valid), targets.crowd)
    every = every_region(none, nobody, 3, rule(), fixed_size=False)
    got = hardest_regions(every, torch.rand(2, 3), rule(4, 0.7), fixed_size=False)
    assert not bool(got.valid.any())
    assert not bool(got.positive.any())


@pytest.mark.parametrize("boxes_a_region", [1, 3])
def test_losses_of_regions_add_up_to_the_losses(boxes_a_region: int) -> None:
    proposals, targets = scene()
    samples: RoISamples = sample_regions(proposals, targets, 3, rule(8), fixed_size=False)
    generator = torch.Generator().manual_seed(2)
    logits: Tensor = torch.randn(2, 8, 4, generator=generator)
    deltas = torch.randn(2, 8, boxes_a_region, 4, generator=generator)
    coding = DeltaCoding((10.0, 10.0, 5.0, 5.0))
    each = losses_of_regions(logits, deltas, samples, coding=coding, smooth_l1_beta=1.0)
    sums = box_losses(logits, deltas, samples, coding=coding, smooth_l1_beta=1.0)
    torch.testing.assert_close(each.sum(), sums["roi_class"].total + sums["roi_box"].total)
    assert each[~samples.valid].abs().sum() == 0
