"""DetectorNet's masks, their loss and the scores of candidates: by eye, and against sums over cells in slow loops."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_core.model.box_coding import DeltaCoding
from maskrcnn_core.model.dense.anchors import PriorAnchors, pyramid_anchors
from maskrcnn_core.model.dense.box_mask_head import BoxMaskHead
from maskrcnn_core.model.dense.box_mask_loss import BoxMaskLoss, box_masks
from maskrcnn_core.structures import DenseOutputs, ImageFeatures, Targets
from tests.core.model.test_fixed_size import NeverWaits

SIDE, GRID = 64, 8
CELL = SIDE // GRID
SIDES = ((16.0, 32.0), (24.0, 24.0), (20.0, 9.0))
HALVES = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0))


def head_of(num_classes: int = 2) -> BoxMaskHead:
    torch.manual_seed(0)
    sides = [(width / SIDE, height / SIDE) for width, height in SIDES]
    return BoxMaskHead(3, 2, GRID, sides, num_classes, widths=(5,), dropout=0.0)


def candidates() -> Tensor:
    rule = PriorAnchors((SIDES,), grid=GRID)
    (boxes,) = pyramid_anchors(rule, (32,), [(2, 2)], (SIDE, SIDE), torch.device("cpu"))
    return boxes


def part_of(box: list[float], part: tuple[float, ...]) -> list[float]:
    width, height = box[2] - box[0], box[3] - box[1]
    return [
        box[0] + part[0] * width,
        box[1] + part[1] * height,
        box[0] + part[2] * width,
        box[1] + part[3] * height,
    ]


def covered(area: list[float], row: int, column: int) -> float:
    """Of a cell, in square cells."""
    across = min(area[2] / CELL, column + 1) - max(area[0] / CELL, column)
    down = min(area[3] / CELL, row + 1) - max(area[1] / CELL, row)
    return max(across, 0.0) * max(down, 0.0)


def summed(mask: Tensor, area: list[float]) -> float:
    cells = itertools.product(range(GRID), range(GRID))
    return sum(float(mask[row, column]) * covered(area, row, column) for row, column in cells)


def square_cells(area: list[float]) -> float:
    return (area[2] - area[0]) * (area[3] - area[1]) / CELL**2


def literal_score(masks: Tensor, box: list[float]) -> float:
    """S(box) of [5, grid, grid]: each part's mean less that of its opposite, a ring for the whole."""
    wide = part_of(box, (-0.1, -0.1, 1.1, 1.1))
    ring = (summed(masks[0], wide) - summed(masks[0], box)) / (square_cells(wide) - square_cells(box))
    score = summed(masks[0], box) / square_cells(box) - ring
    for number, (part, opposite) in enumerate(zip(HALVES, (HALVES[i] for i in (1, 0, 3, 2)), strict=True)):
        for area, sign in ((part_of(box, part), 1), (part_of(box, opposite), -1)):
            score += sign * summed(masks[1 + number], area) / square_cells(area)
    return score / 5


def targets_of(boxes: list[list[list[float]]], labels: list[list[int]], kinds: list[list[str]]) -> Targets:
    valid, crowd = (torch.tensor([[kind == name for kind in row] for row in kinds]) for name in ("object", "crowd"))
    return Targets(torch.tensor(boxes), torch.tensor(labels), valid, crowd)


def test_scores_are_means_over_areas() -> None:
    head = head_of()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.4)
    outputs = head([torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1))])
    boxes = candidates()
    assert outputs.masks is not None
    assert outputs.logits[0].shape == (2, len(boxes), 2)
    assert not outputs.deltas[0].any()
    for image, label, number in itertools.product(range(2), range(2), range(0, len(boxes), 7)):
        expected = literal_score(outputs.masks[image, label].detach(), boxes[number].tolist())
        assert float(outputs.logits[0][image, number, label]) == pytest.approx(expected, abs=1e-5)


def test_the_best_candidate_is_the_object() -> None:
    """By eye: of 3 x 3 cells the whole mask says 1; a half ends in the middle of a cell, whose other half lies
    opposite: 5/6 inside, 1/6 outside."""
    boxes, head = candidates(), head_of(1)
    chosen = int(((boxes[:, 2] - boxes[:, 0] == 24) & (boxes[:, 0] == 24) & (boxes[:, 1] == 16)).nonzero()[0, 0])
    drawn = box_masks(targets_of([[boxes[chosen].tolist()]], [[0]], [["object"]]), 1, GRID, (SIDE, SIDE))
    scores = head._scores(drawn).permute(0, 3, 4, 2, 1).flatten()
    assert int(scores.argmax()) == chosen
    assert float(scores[chosen]) == pytest.approx((1 + 4 * (5 / 6 - 1 / 6)) / 5)
    assert float(scores.sort().values[-2]) < 0.7


def test_masks_by_eye() -> None:
    """A box of 2 x 2 cells, and one of another class over half a cell; padding and crowds draw nothing."""
    boxes = [[[8.0, 16, 24, 32], [0.0, 0, 4, 8], [0.0, 0, 64, 64], [0.0, 0, 64, 64]]]
    made = box_masks(
        targets_of(boxes, [[0, 1, 0, 0]], [["object", "object", "crowd", "padding"]]), 2, GRID, (SIDE, SIDE)
    )
    whole, left, right, upper, lower = made[0, 0]
    assert whole[2:4, 1:3].tolist() == [[1, 1], [1, 1]]
    assert float(whole.sum()) == 4
    assert left.nonzero().tolist() == [[2, 1], [3, 1]]
    assert right.nonzero().tolist() == [[2, 2], [3, 2]]
    assert upper.nonzero().tolist() == [[2, 1], [2, 2]]
    assert lower.nonzero().tolist() == [[3, 1], [3, 2]]
    assert made[0, 1, 0].nonzero().tolist() == [[0, 0]]
    assert float(made[0, 1, 0, 0, 0]) == 0.5


class Given(nn.Module):
    """A head that draws what it is told."""

    def __init__(self, masks: Tensor) -> None:
        super().__init__()
        self.masks = nn.Parameter(masks)

    def forward(self, maps: object) -> DenseOutputs:
        return DenseOutputs([], [], masks=self.masks)

    def at(self, maps: object, index: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def test_the_loss_is_the_papers() -> None:
    """Weights are the wanted masks plus lambda, nothing in crowds; images without objects learn to be empty."""
    drawn = torch.rand(3, 2, 5, GRID, GRID, generator=torch.Generator().manual_seed(3))
    boxes = [[[8.0, 16, 30, 32], [40.0, 40, 64, 64]]] * 3
    kinds = [["object", "object"], ["object", "crowd"], ["padding", "padding"]]
    targets, head = targets_of(boxes, [[0, 1]] * 3, kinds), Given(drawn)
    features = ImageFeatures([], (32,), torch.full((3, 2), SIDE), torch.zeros(3, 3, SIDE, SIDE), fixed_size=True)
    with NeverWaits():
        loss = BoxMaskLoss(0.1)(head, features, [], DeltaCoding(), targets)["dense_mask"]
    assert int(loss.count) == 3
    expected = 0.0
    for image, label, mask in itertools.product(range(3), range(2), range(5)):
        box = boxes[image][label]
        area = box if mask == 0 else part_of(box, HALVES[mask - 1])
        for row, column in itertools.product(range(GRID), range(GRID)):
            wanted = covered(area, row, column) if kinds[image][label] == "object" else 0.0
            in_crowd = kinds[image][1] == "crowd" and covered(boxes[image][1], row, column) > 0
            weight = 0.0 if in_crowd and wanted == 0 else wanted + 0.1
            expected += weight * (float(drawn[image, label, mask, row, column]) - wanted) ** 2
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    loss.total.backward()
    assert head.masks.grad is not None
    assert not head.masks.grad[1, 0, :, 5:, 5:].any()
    assert bool(head.masks.grad[2].any())
