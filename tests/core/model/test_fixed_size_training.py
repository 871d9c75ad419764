"""Losses as a GPU computes them, on the CPU: the same numbers and gradients, and nothing that makes the host wait."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from maskrcnn_core.data.targets import pad_targets, targets_from_dense
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.dense import shared_head
from maskrcnn_core.model.dense.sampled_outputs import outputs_at
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.model.regions import align, rows, transform
from maskrcnn_core.model.regions.levels import cut_by_level
from maskrcnn_core.structures import Targets
from tests.core.model.test_fixed_size import CONFIG, NeverWaits, batch
from tests.small_detector import with_fixed_size_on


def targets_of() -> Targets:
    """Two images, of two and of no objects."""
    masks = torch.zeros(2, 96, 128, dtype=torch.uint8)
    masks[0, 10:50, 20:70] = 1
    masks[1, 40:90, 60:120] = 1
    boxes = torch.tensor([[20.0, 10, 70, 50], [60, 40, 120, 90]])
    keypoints = torch.tensor([[[30.0, 20, 2], [60, 40, 1]], [[0, 0, 0], [0, 0, 0]]])
    some = targets_from_dense(boxes, torch.tensor([0, 2]), masks)
    none = targets_from_dense(boxes[:0], torch.zeros(0, dtype=torch.int64), masks[:0, :90, :100])
    points = torch.stack((keypoints, torch.zeros_like(keypoints)))
    return replace(pad_targets([some, none]), keypoints=points, seeds=torch.tensor([5, 7]))


def learner(*, fixed_size: bool) -> Detector:
    torch.manual_seed(0)
    detector = build_detector(CONFIG, load_pretrained=False)
    return with_fixed_size_on(detector, ("cpu",) if fixed_size else ()).train()


def losses_and_gradients(detector: Detector) -> tuple[dict[str, Tensor], list[Tensor]]:
    losses = detector(batch(), targets_of())
    torch.stack(list(losses.values())).sum().backward()
    return losses, [p.grad for p in detector.parameters() if p.grad is not None]


def test_the_same_losses_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, gradients = losses_and_gradients(learner(fixed_size=False))
    # What decides by the device of its input.
    monkeypatch.setattr(transform, "roi_align", align.align_by_operator)
    monkeypatch.setattr(align, "cut_by_level", lambda *given, fixed_size: cut_by_level(*given, fixed_size=True))
    monkeypatch.setattr(shared_head, "outputs_at", lambda *given, fixed_size: outputs_at(*given, fixed_size=True))
    # On a GPU the number comes while the box head is computed.
    monkeypatch.setattr(rows.DelayedCount, "read", lambda self: 70)
    detector = learner(fixed_size=True)
    images, targets = batch(), targets_of()
    detector(images, targets)  # anchors of this shape are made once, on the host
    with NeverWaits():
        losses = detector(images, targets)
        torch.stack(list(losses.values())).sum().backward()
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, atol=1e-5, rtol=1e-4, msg=name)
        assert value > 0
    found = [p.grad for p in detector.parameters() if p.grad is not None]
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("count", [0, 1, 64, 65])
def test_positive_regions_are_rounded_up(count: int) -> None:
    from maskrcnn_core.model.heads.box import RoISamples

    positive = torch.zeros(2, 100, dtype=torch.bool)
    positive[0, : count // 2] = True
    positive[1, : count - count // 2] = True
    samples = RoISamples(
        boxes=torch.rand(2, 100, 4),
        labels=torch.where(positive, 3, 9),
        object_boxes=torch.rand(2, 100, 4),
        objects=torch.arange(200).view(2, 100),
        positive=positive,
        valid=torch.ones(2, 100, dtype=torch.bool),
        max_positives=50,
    )
    image_index, number = rows.image_index_of(samples.labels), rows.DelayedCount(positive)
    alone = rows.PositiveRegions(samples, image_index, number, fixed_size=False)
    assert alone.slots.equal(positive.flatten().nonzero()[:, 0])
    front = rows.PositiveRegions(samples, image_index, number, fixed_size=True)
    assert front.slots[:count].equal(alone.slots)
    assert len(front.slots) == {0: 64, 1: 64, 64: 64, 65: 100}[count]
    assert int(front.positive.sum()) == count
    assert front.positive[:count].all()
    assert front.objects.equal(front.slots)
    assert (front.labels == torch.where(front.positive, 3, 0)).all()
    assert front.images.equal(front.slots // 100)
