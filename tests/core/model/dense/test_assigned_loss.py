"""MultiBox's loss: by eye, against the paper's formula in a slow loop over all assignments, with crowds and without
objects."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_core.model.corner_coding import CornerCoding
from maskrcnn_core.model.dense.anchors import pyramid_anchors
from maskrcnn_core.model.dense.assigned_loss import AssignedLoss, assigned
from maskrcnn_core.model.dense.image_anchors import ImageAnchors
from maskrcnn_core.model.loss_counts import LossSum
from maskrcnn_core.model.matching import IGNORED, NEGATIVE, POSITIVE
from maskrcnn_core.structures import DenseOutputs, ImageFeatures, Targets
from tests.core.model.test_fixed_size import NeverWaits

SIDE, CLASSES = 100, 3
PRIORS = ((0.0, 0.0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75), (0.5, 0.5, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0))
CODING = CornerCoding(SIDE)


class Given(nn.Module):
    """A head that says what it is told."""

    def __init__(self, logits: Tensor, deltas: Tensor) -> None:
        super().__init__()
        self.logits, self.deltas = nn.Parameter(logits), nn.Parameter(deltas)

    def forward(self, maps: object) -> DenseOutputs:
        return DenseOutputs([self.logits], [self.deltas])

    def at(self, maps: object, index: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def anchors() -> list[Tensor]:
    rule = ImageAnchors(PRIORS, SIDE)
    return pyramid_anchors(rule, (32,), [(4, 4)], (SIDE, SIDE), torch.device("cpu"))


ANCHORS = anchors()


def losses_of(head: Given, targets: Targets, *, fixed_size: bool = False) -> dict[str, LossSum]:
    number = len(head.logits)
    sizes = torch.full((number, 2), SIDE)
    pixels = torch.zeros(number, 3, SIDE, SIDE)
    features = ImageFeatures([torch.zeros(number, 1, 4, 4)], (32,), sizes, pixels, fixed_size=fixed_size)
    loss = AssignedLoss(crowd_overlap=0.7, box_weight=0.3, class_weight=1.0)
    return loss(head, features, ANCHORS, CODING, targets)


def targets_of(boxes: list[list[list[float]]], labels: list[list[int]], kinds: list[list[str]]) -> Targets:
    """Kinds: "object", "crowd" or "padding"."""
    valid, crowd = (torch.tensor([[kind == name for kind in row] for row in kinds]) for name in ("object", "crowd"))
    return Targets(torch.tensor(boxes), torch.tensor(labels), valid, crowd)


def test_anchors_are_the_boxes_once_an_image() -> None:
    (boxes,) = anchors()
    assert boxes.tolist() == [[0, 0, 50, 50], [25, 25, 75, 75], [50, 50, 100, 100], [0, 0, 100, 100]]
    assert ImageAnchors(PRIORS, SIDE).per_level(1) == (4,)


def test_assignment_by_eye() -> None:
    """Both objects are nearest to the first prior, and the second object can better do without it."""
    targets = targets_of(
        [[[0.0, 0, 48, 48], [5.0, 5, 56, 56], [0.0, 0, 9, 9]]], [[0, 1, 2]], [["object", "object", "padding"]]
    )
    matches = assigned(anchors()[0], targets, CODING, 0.7)
    assert matches.kinds.tolist() == [[POSITIVE, POSITIVE, NEGATIVE, NEGATIVE]]
    assert matches.objects[0, :2].tolist() == [0, 1]
    crowd = targets_of([[[40.0, 40, 100, 100], [0.0, 0, 100, 100]]], [[0, 0]], [["crowd", "object"]])
    assert assigned(anchors()[0], crowd, CODING, 0.7).kinds.tolist() == [[NEGATIVE, NEGATIVE, IGNORED, POSITIVE]]


def literal(logits: list[list[float]], deltas: list[list[float]], truths: list[tuple[list[float], int]]) -> float:
    """The paper's F of one image: alpha times half the squares, plus the logarithms, at the nearest assignment."""

    def place(box: list[float]) -> list[float]:
        return [value / SIDE for value in box]

    def away(prior: int, truth: int) -> float:
        return sum((a - b) ** 2 for a, b in zip(place(truths[truth][0]), PRIORS[prior], strict=True))

    ways = itertools.permutations(range(len(PRIORS)), len(truths))
    best = min(ways, key=lambda way: sum(away(prior, truth) for truth, prior in enumerate(way)))
    match = confidence = 0.0
    for prior in range(len(PRIORS)):
        label = truths[best.index(prior)][1] if prior in best else None
        for k in range(CLASSES):
            c = 1 / (1 + math.exp(-logits[prior][k]))
            confidence -= math.log(c) if k == label else math.log(1 - c)
        if prior in best:
            box = [a + b for a, b in zip(deltas[prior], PRIORS[prior], strict=True)]
            match += 0.5 * sum((a - b) ** 2 for a, b in zip(box, place(truths[best.index(prior)][0]), strict=True))
    return 0.3 * match + confidence


@pytest.mark.parametrize("fixed_size", [False, True])
def test_it_is_the_papers(fixed_size: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, deltas = torch.randn(3, 4, CLASSES, generator=generator), torch.randn(3, 4, 4, generator=generator)
    corners = 50 * torch.rand(3, 3, 2, generator=generator)
    boxes = torch.cat((corners, corners + 10 + 40 * torch.rand(3, 3, 2, generator=generator)), dim=2).tolist()
    kinds = [["object"] * 3, ["object", "padding", "padding"], ["padding"] * 3]
    targets = targets_of(boxes, [[0, 2, 1]] * 3, kinds)
    losses = losses_of(Given(logits, deltas), targets, fixed_size=fixed_size)
    assert {int(loss.count) for loss in losses.values()} == {3}
    expected = sum(
        literal(
            logits[image].tolist(),
            deltas[image].tolist(),
            [(boxes[image][g], [0, 2, 1][g]) for g in range(3) if kinds[image][g] == "object"],
        )
        for image in range(3)
    )
    total = torch.stack([loss.total for loss in losses.values()]).sum().detach()
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_gradients_and_what_fills_a_slot() -> None:
    """Boxes learn only where they are somebody's; nothing waits, and padding may hold anything."""
    targets = targets_of([[[0.0, 0, 48, 48], [1e9, 0, 2e9, 1]]], [[1, 0]], [["object", "padding"]])
    head = Given(torch.zeros(1, 4, CLASSES), torch.zeros(1, 4, 4))
    with NeverWaits():
        losses = losses_of(head, targets, fixed_size=True)
    torch.stack([loss.total for loss in losses.values()]).sum().backward()
    assert head.deltas.grad is not None
    assert head.logits.grad is not None
    torch.testing.assert_close(head.deltas.grad[0, 0], 0.3 * torch.tensor([0.0, 0.0, 0.02, 0.02]))
    assert not head.deltas.grad[0, 1:].any()
    expected = torch.full((4, CLASSES), 0.5)
    expected[0, 1] = -0.5
    torch.testing.assert_close(head.logits.grad[0], expected)
