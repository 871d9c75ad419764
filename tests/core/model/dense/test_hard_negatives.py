"""Which anchors SSD learns from, by eye and in the empty cases; the losses are held to torchvision's elsewhere."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_core.model.box_coding import DeltaCoding
from maskrcnn_core.model.dense.hard_negative_loss import HardNegativeLoss, hardest, with_best_anchors
from maskrcnn_core.model.dense.head import at_anchors
from maskrcnn_core.model.matching import IGNORED, NEGATIVE, POSITIVE, Matches
from maskrcnn_core.structures import DenseOutputs, ImageFeatures, Targets

ANCHORS = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10], [30, 0, 40, 10]])
LOSS = HardNegativeLoss(
    positive_overlap=0.5, crowd_overlap=0.7, negatives_per_positive=1.0, softmax=True, smooth_l1_beta=1.0
)


def targets_of(boxes: list[list[float]], labels: list[int], crowd: tuple[int, ...] = ()) -> Targets:
    is_crowd = torch.tensor([index in crowd for index in range(len(boxes))])[None]
    return Targets(torch.tensor(boxes)[None], torch.tensor(labels)[None], ~is_crowd, is_crowd)


def test_every_object_has_its_best_anchor_by_eye() -> None:
    # The first overlaps anchor 1 by 3/17 and anchor 0 by 7/13; the second anchor 0 the most, too; the third is a crowd.
    targets = targets_of([[3, 0, 13, 10], [0, 0, 10, 4], [20, 0, 30, 10]], [0, 1, 1], crowd=(2,))
    kinds = torch.tensor([[POSITIVE, NEGATIVE, IGNORED, NEGATIVE]])
    found = with_best_anchors(Matches(kinds, torch.tensor([[0, 0, 0, 0]])), ANCHORS, targets)
    assert found.kinds.tolist() == [[POSITIVE, NEGATIVE, IGNORED, NEGATIVE]]
    assert found.objects[0, 0] == 1  # of two with one best anchor the later
    elsewhere = replace(targets, boxes=targets.boxes + torch.tensor([500.0, 0, 500, 0]))
    alone = with_best_anchors(Matches(kinds, torch.zeros_like(kinds)), ANCHORS, elsewhere)
    assert torch.equal(alone.kinds, kinds)  # an object that overlaps no anchor


def test_the_hardest_by_eye() -> None:
    losses = torch.tensor([[0.5, 0.9, 0.1, 0.7], [0.5, 0.9, 0.1, 0.7], [1.0, 1, 1, 1]])
    candidates = torch.tensor([[True, False, True, True], [True] * 4, [False] * 4])
    found = hardest(losses, candidates, torch.tensor([2.0, 0.0, 3.0]))
    assert found.tolist() == [[True, False, False, True], [False] * 4, [False] * 4]
    assert hardest(losses, candidates, torch.tensor([9.0, 1.5, 0.0])).sum(dim=1).tolist() == [3, 2, 0]


class Head(nn.Module):
    """Says what it is told."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.deltas = nn.Parameter(torch.zeros(*logits.shape[:2], 4))

    def forward(self, maps: Sequence[Tensor]) -> DenseOutputs:
        return DenseOutputs([self.logits], [self.deltas])

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        return at_anchors(self(maps), index)


def features(*, fixed_size: bool) -> ImageFeatures:
    return ImageFeatures([], (), torch.tensor([[10, 40]]), torch.zeros(1, 3, 10, 40), fixed_size)


@pytest.mark.parametrize("fixed_size", [False, True])
def test_losses_by_eye(fixed_size: bool) -> None:
    # One object on anchor 1, two classes and background; anchor 3 looks like an object, 0 and 2 do not.
    logits = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [-1, -1, 1], [3, 0, 0]]])
    head = Head(logits)
    targets = targets_of([[10, 0, 20, 10]], [0])
    sums = LOSS(head, features(fixed_size=fixed_size), [ANCHORS], DeltaCoding(), targets)
    by_softmax = -logits.log_softmax(dim=2)[0]
    assert sums["dense_class"].total.item() == pytest.approx(float(by_softmax[1, 0] + by_softmax[3, 2]), rel=1e-6)
    assert sums["dense_box"].total.item() == 0
    assert sums["dense_class"].count == 1
    sums["dense_class"].total.backward()
    assert head.logits.grad is not None
    assert head.logits.grad[0].abs().sum(dim=1).gt(0).tolist() == [False, True, False, True]
    by_sigmoid = replace(LOSS, softmax=False)
    each = by_sigmoid(head, features(fixed_size=fixed_size), [ANCHORS], DeltaCoding(), targets)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[0, [1, 3]], torch.tensor([[1.0, 0, 0], [0, 0, 0]]), reduction="sum"
    )
    assert each["dense_class"].total.item() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("fixed_size", [False, True])
def test_no_objects_and_crowds(fixed_size: bool) -> None:
    head = Head(torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0)))
    nothing = Targets(
        torch.zeros(1, 1, 4), torch.zeros(1, 1).long(), torch.zeros(1, 1).bool(), torch.zeros(1, 1).bool()
    )
    for targets in (nothing, targets_of([[0, 0, 40, 10]], [0], crowd=(0,))):
        sums = LOSS(head, features(fixed_size=fixed_size), [ANCHORS], DeltaCoding(), targets)
        assert all(loss.total.item() == 0 and int(loss.count) == 0 for loss in sums.values())
    # What lies in a crowd is no negative: of anchors 0, 2 and 3 only 0 is left.
    targets = targets_of([[10, 0, 20, 10], [20, 0, 40, 10]], [0, 0], crowd=(1,))
    sums = replace(LOSS, negatives_per_positive=9.0)(
        head,
        features(fixed_size=fixed_size),
        [ANCHORS],
        DeltaCoding(),
        targets,
    )
    sums["dense_class"].total.backward()
    assert head.logits.grad is not None
    assert head.logits.grad[0].abs().sum(dim=1).gt(0).tolist() == [True, True, False, False]
