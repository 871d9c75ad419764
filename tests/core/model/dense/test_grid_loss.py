"""YOLOv1's loss: its gradients are those that Darknet's detection layer writes, cell by cell in a slow loop."""

import math

import torch
from torch import Tensor, nn

from maskrcnn_core.model.cell_coding import RootCoding
from maskrcnn_core.model.dense.anchors import PriorAnchors, pyramid_anchors
from maskrcnn_core.model.dense.grid_loss import GridLoss
from maskrcnn_core.structures import DenseOutputs, ImageFeatures, Targets
from tests.core.model.dense.test_cell_loss import iou, targets_of

GRID, BOXES, CLASSES, CELL = 2, 2, 3, 64
SIDE = GRID * CELL


class Given(nn.Module):
    """A head that says what it is told: class values of cells, confidences, boxes, as Darknet's vector."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.vector = nn.Parameter(vector)

    def forward(self, maps: object) -> DenseOutputs:
        cells = GRID**2
        classes, confidences, boxes = self.vector.split((cells * CLASSES, cells * BOXES, cells * BOXES * 4), dim=1)
        logits = classes.unflatten(1, (cells, 1, CLASSES)).expand(-1, -1, BOXES, -1).flatten(1, 2)
        return DenseOutputs([logits], [boxes.unflatten(1, (-1, 4))], [confidences])

    def at(self, maps: object, index: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def darknets_deltas(vector: list[float], truths: list[tuple[tuple[float, ...], int]]) -> list[float]:
    """What Darknet adds to the outputs of one image; truths as centre and sides in parts of the image."""
    cells = GRID**2
    deltas = [0.0] * len(vector)
    of_cell = {int(box[1] * GRID) * GRID + int(box[0] * GRID): (box, label) for box, label in truths}
    for cell in range(cells):
        for j in range(BOXES):
            place = cells * CLASSES + cell * BOXES + j
            deltas[place] = 0.5 * (0 - vector[place])
        if cell not in of_cell:
            continue
        box, label = of_cell[cell]
        for k in range(CLASSES):
            deltas[cell * CLASSES + k] = (k == label) - vector[cell * CLASSES + k]
        row, column = divmod(cell, GRID)
        best, best_iou, best_rmse = -1, 0.0, 20.0
        overlaps = []
        for j in range(BOXES):
            at = cells * (CLASSES + BOXES) + (cell * BOXES + j) * 4
            x, y, w, h = vector[at : at + 4]
            out = ((x + column) / GRID, (y + row) / GRID, w * w, h * h)
            overlap = iou(out, box)
            overlaps.append(overlap)
            rmse = math.sqrt(sum((a - b) ** 2 for a, b in zip(out, box, strict=True)))
            if best_iou > 0 or overlap > 0:
                if overlap > best_iou:
                    best, best_iou = j, overlap
            elif rmse < best_rmse:
                best, best_rmse = j, rmse
        deltas[cells * CLASSES + cell * BOXES + best] = overlaps[best] - vector[cells * CLASSES + cell * BOXES + best]
        at = cells * (CLASSES + BOXES) + (cell * BOXES + best) * 4
        wanted = (box[0] * GRID - column, box[1] * GRID - row, math.sqrt(box[2]), math.sqrt(box[3]))
        for i, value in enumerate(wanted):
            deltas[at + i] = 5 * (value - vector[at + i])
    return deltas


def losses_of(head: nn.Module, targets: Targets, number: int) -> Tensor:
    maps = [torch.zeros(number, 1, GRID, GRID)]
    sizes = torch.tensor([[SIDE, SIDE]] * number)
    features = ImageFeatures(maps, (CELL,), sizes, torch.zeros(number, 3, SIDE, SIDE))
    rule = PriorAnchors((((float(SIDE), float(SIDE)),) * BOXES,))
    anchors = pyramid_anchors(rule, (CELL,), [(GRID, GRID)], (SIDE, SIDE), torch.device("cpu"))
    loss = GridLoss(object_weight=1, empty_weight=0.5, box_weight=5, class_weight=1)
    losses = loss(head, features, anchors, RootCoding(CELL), targets)  # type: ignore[arg-type]
    assert {int(one.count) for one in losses.values()} == {number}
    return torch.stack([one.total for one in losses.values()]).sum()


def test_gradients_are_darknets() -> None:
    generator = torch.Generator().manual_seed(1)
    vector = torch.rand(2, GRID**2 * (CLASSES + 5 * BOXES), generator=generator)
    # The second object's cell has boxes that miss it: the nearest one is responsible.
    vector[0, GRID**2 * (CLASSES + BOXES) + 3 * BOXES * 4 :][:8] = torch.tensor([3, 3, 0.1, 0.1, 2, 2, 0.1, 0.1])
    boxes = [
        [[5.0, 5.0, 60.0, 40.0], [70.0, 70.0, 100.0, 120.0], [8.0, 50.0, 20.0, 74.0]],
        [[0.0, 0.0, 1.0, 1.0]] * 3,
    ]
    labels, valid = [[0, 2, 1], [0, 0, 0]], [[True, True, False], [False] * 3]
    head = Given(vector.clone())
    losses_of(head, targets_of(boxes, labels, valid), 2).backward()
    for image in range(2):
        truths = [
            (tuple(v / SIDE for v in ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1])), label)
            for b, label, real in zip(boxes[image], labels[image], valid[image], strict=True)
            if real
        ]
        expected = torch.tensor(darknets_deltas(vector[image].tolist(), truths))
        # The squares' gradients are twice the differences.
        assert torch.allclose(-head.vector.grad[image] / 2, expected, atol=1e-5)
