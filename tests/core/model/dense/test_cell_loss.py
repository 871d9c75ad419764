"""YOLOv2's loss: its gradients are those that Darknet's region layer writes, object by object in a slow loop."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_core.model.cell_coding import CellCoding
from maskrcnn_core.model.dense.anchors import PriorAnchors, pyramid_anchors
from maskrcnn_core.model.dense.cell_loss import CellLoss, assign_cells, paired_iou
from maskrcnn_core.structures import DenseOutputs, ImageFeatures, Targets

CELL, HEIGHT, WIDTH, CLASSES = 32, 2, 3, 3
PRIORS = ((20.0, 30.0), (60.0, 25.0))
IGNORE = 0.6


class Given(nn.Module):
    """A head that says what it is told."""

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = nn.Parameter(raw)

    def forward(self, maps: object) -> DenseOutputs:
        return DenseOutputs([self.raw[..., 5:]], [self.raw[..., :4]], [self.raw[..., 4]])

    def at(self, maps: object, index: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def loss_of(*, warm_up_images: int = 0) -> CellLoss:
    return CellLoss(
        ignore_overlap=IGNORE,
        crowd_overlap=0.7,
        object_weight=5,
        empty_weight=1,
        box_weight=1,
        class_weight=1,
        warm_up_images=warm_up_images,
    )


def features(number: int) -> ImageFeatures:
    maps = [torch.zeros(number, 1, HEIGHT, WIDTH)]
    sizes = torch.tensor([[HEIGHT * CELL, WIDTH * CELL]] * number)
    return ImageFeatures(maps, (CELL,), sizes, torch.zeros(number, 3, HEIGHT * CELL, WIDTH * CELL))


def priors() -> list[Tensor]:
    rule = PriorAnchors((PRIORS,))
    shape = (HEIGHT * CELL, WIDTH * CELL)
    return pyramid_anchors(rule, (CELL,), [(HEIGHT, WIDTH)], shape, torch.device("cpu"))


def targets_of(boxes: list[list[list[float]]], labels: list[list[int]], valid: list[list[bool]]) -> Targets:
    real = torch.tensor(valid)
    return Targets(torch.tensor(boxes), torch.tensor(labels), real, torch.zeros_like(real))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Of centre and sides."""
    across = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    down = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    both = max(across, 0.0) * max(down, 0.0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def darknets_deltas(raw: list[list[float]], truths: Sequence[tuple[tuple[float, ...], int]]) -> list[list[float]]:
    """What Darknet adds to the outputs of one image, as its loops go; truths as centre and sides in pixels."""
    number = len(PRIORS)
    deltas = [[0.0] * (5 + CLASSES) for _ in raw]

    def predicted(index: int) -> tuple[float, ...]:
        cell, prior = divmod(index, number)
        row, column = divmod(cell, WIDTH)
        x, y, w, h = raw[index][:4]
        sides = PRIORS[prior]
        place = (column + sigmoid(x)) * CELL, (row + sigmoid(y)) * CELL
        return *place, math.exp(w) * sides[0], math.exp(h) * sides[1]

    for index in range(len(raw)):
        best = max([iou(predicted(index), box) for box, _ in truths], default=0.0)
        deltas[index][4] = 0.0 if best > IGNORE else -sigmoid(raw[index][4])
    for box, label in truths:
        column, row = int(box[0] / CELL), int(box[1] / CELL)
        shapes = [iou((0, 0, *sides), (0, 0, box[2], box[3])) for sides in PRIORS]
        prior = shapes.index(max(shapes))
        index = (row * WIDTH + column) * number + prior
        x, y, w, h = raw[index][:4]
        scale = 2 - box[2] * box[3] / (HEIGHT * WIDTH * CELL**2)
        deltas[index][0] = scale * (box[0] / CELL - column - sigmoid(x))
        deltas[index][1] = scale * (box[1] / CELL - row - sigmoid(y))
        deltas[index][2] = scale * (math.log(box[2] / PRIORS[prior][0]) - w)
        deltas[index][3] = scale * (math.log(box[3] / PRIORS[prior][1]) - h)
        deltas[index][4] = 5 * (iou(predicted(index), box) - sigmoid(raw[index][4]))
        total = sum(math.exp(value) for value in raw[index][5:])
        for k in range(CLASSES):
            deltas[index][5 + k] = (k == label) - math.exp(raw[index][5 + k]) / total
    return deltas


def test_gradients_are_darknets() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(2, HEIGHT * WIDTH * len(PRIORS), 5 + CLASSES, generator=generator)
    # Three objects, of which two have one prior of one cell, the later of them has it; and an image without any.
    boxes = [[[5.0, 5.0, 27.0, 33.0], [8.0, 10.0, 26.0, 40.0], [40.0, 34.0, 95.0, 62.0]], [[0.0, 0.0, 1.0, 1.0]] * 3]
    labels, valid = [[0, 2, 1], [0, 0, 0]], [[True] * 3, [False] * 3]
    # One box is right already, so that nobody tells it that it is none.
    raw[0, 10, :4] = CellCoding(CELL).encode(torch.tensor(boxes[0][2]), priors()[0][10])
    head = Given(raw.clone())
    losses = loss_of()(head, features(2), priors(), CellCoding(CELL), targets_of(boxes, labels, valid))
    assert set(losses) == {"dense_class", "dense_box", "dense_objectness"}
    assert {int(loss.count) for loss in losses.values()} == {2}
    sum(loss.total for loss in losses.values()).backward()
    for image in range(2):
        truths = [
            (((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]), label)
            for b, label, real in zip(boxes[image], labels[image], valid[image], strict=True)
            if real
        ]
        expected = torch.tensor(darknets_deltas(raw[image].tolist(), truths))
        assert torch.allclose(-head.raw.grad[image], expected, atol=1e-5)


def test_objects_go_to_the_prior_of_their_shape() -> None:
    boxes = [[[40.0, 40.0, 60.0, 62.0], [34.0, 36.0, 92.0, 60.0], [0.0, 0.0, 1.0, 1.0]]]
    owned, objects = assign_cells(priors()[0], targets_of(boxes, [[0, 1, 0]], [[True, True, False]]), (2, 3), CELL)
    # Centres (50, 51) in row 1, column 1 and (63, 48) there, too: cell 4, priors 8 and 9.
    assert owned[0].nonzero().flatten().tolist() == [8, 9]
    assert objects[0, 8:].tolist() == [0, 1, 0, 0]


def test_crowds_are_learnt_by_nobody_and_punish_nobody() -> None:
    crowd = targets_of([[[0.0, 0.0, 96.0, 64.0]]], [[0]], [[False]])
    crowd = Targets(crowd.boxes, crowd.labels, crowd.valid, torch.ones_like(crowd.valid))
    raw = torch.zeros(1, HEIGHT * WIDTH * len(PRIORS), 5 + CLASSES)
    # Small boxes, all within the crowd.
    raw[..., 2:4] = -2.0
    head = Given(raw)
    losses = loss_of()(head, features(1), priors(), CellCoding(CELL), crowd)
    assert [loss.total.item() for loss in losses.values()] == [0, 0, 0]


def test_the_warm_up_ends() -> None:
    raw = torch.ones(2, HEIGHT * WIDTH * len(PRIORS), 5 + CLASSES)
    none = targets_of([[[0.0, 0.0, 1.0, 1.0]]] * 2, [[0]] * 2, [[False]] * 2)
    loss = loss_of(warm_up_images=4)
    sums = [loss(Given(raw), features(2), priors(), CellCoding(CELL), none)["dense_box"].total.item() for _ in range(3)]
    # Twice BCE of 1 against one half, twice half a square of 1.
    each = 2 * (math.log(1 + math.e) - 0.5) + 1
    assert sums == pytest.approx([0.01 * 24 * each, 0.01 * 24 * each, 0])
    assert "seen" in loss.state_dict()


def test_pairs_of_boxes() -> None:
    first = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    second = torch.tensor([[1.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 6.0], [3.0, 3.0, 3.0, 3.0]])
    assert paired_iou(first, second).tolist() == pytest.approx([1 / 3, 0, 0])
