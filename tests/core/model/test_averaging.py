"""OverFeat's merging of boxes: by eye, and against the paper's loop over lists."""

import math

import pytest
import torch

from maskrcnn_core.inference.views import MergeRule, merge_detections
from maskrcnn_core.model.averaging import average_pairs, closeness, summed_score
from maskrcnn_core.model.survivors import DetectionRule, merged
from maskrcnn_core.structures import Detections
from tests.core.model.test_fixed_size import NeverWaits

Box = tuple[float, ...]
LIMIT = 0.3


def close(a: Box, b: Box) -> float:
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(across, 0.0) * max(down, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    between = math.dist(((a[0] + a[2]) / 2, (a[1] + a[3]) / 2), ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2))
    diagonals = math.dist(a[:2], a[2:]), math.dist(b[:2], b[2:])
    return both / union - between / (sum(diagonals) / 2)


def papers_loop(found: list[tuple[Box, float, int]]) -> list[tuple[Box, float, int]]:
    """Steps d to g of section 4.3, on a list."""
    found = list(found)
    while True:
        pairs = [
            (close(found[i][0], found[j][0]), i, j)
            for i in range(len(found))
            for j in range(i + 1, len(found))
            if found[i][2] == found[j][2]
        ]
        if not pairs or max(pairs)[0] <= LIMIT:
            return found
        _, i, j = max(pairs)
        box = tuple((a + b) / 2 for a, b in zip(found[i][0], found[j][0], strict=True))
        found[i] = (box, found[i][1] + found[j][1], found[i][2])
        del found[j]


def test_by_eye() -> None:
    """The two that overlap become one between them; the third is apart, the fourth of another class."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20.0, 20, 30, 30], [2.0, 0, 12, 10], [0.0, 0, 10, 10]]])
    scores, labels = torch.tensor([[0.5, 0.4, 0.3, 0.2]]), torch.tensor([[0, 0, 0, 1]])
    left, sums, valid = average_pairs(boxes, scores, labels, torch.ones(1, 4, dtype=torch.bool), LIMIT)
    assert valid.tolist() == [[True, True, False, True]]
    assert left[0, 0].tolist() == [1, 0, 11, 10]
    torch.testing.assert_close(sums[0, [0, 1, 3]], torch.tensor([0.8, 0.4, 0.2]))
    assert boxes[0, 0].tolist() == [0, 0, 10, 10]  # what was given stays
    assert summed_score(torch.tensor([0.0, 1.0, 3.0])).tolist() == [0.0, 0.5, 0.75]
    same, apart = boxes[0, :1], boxes[0, 1:2]
    assert closeness(same, same).item() == 1
    torch.testing.assert_close(closeness(same, apart), torch.tensor([[-2.0]]))


@pytest.mark.parametrize("fixed_size", [False, True])
def test_it_is_the_papers_loop(fixed_size: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    corners = 60 * torch.rand(3, 25, 2, generator=generator)
    boxes = torch.cat((corners, corners + 20 + 20 * torch.rand(3, 25, 2, generator=generator)), dim=2)
    scores, labels = torch.rand(3, 25, generator=generator), torch.arange(25).expand(3, -1) % 2
    valid = torch.rand(3, 25, generator=generator) < torch.tensor([[1.0], [0.5], [0.0]])
    with NeverWaits() if fixed_size else torch.no_grad():
        averaged, sums, left = average_pairs(boxes, scores, labels, valid, LIMIT, fixed_size=fixed_size)
    for image in range(3):
        given = [
            (tuple(boxes[image, slot].tolist()), float(scores[image, slot]), int(labels[image, slot]))
            for slot in range(25)
            if valid[image, slot]
        ]
        expected = papers_loop(given)
        assert len(expected) == int(left[image].sum())
        assert len(expected) < len(given) or not given
        for (box, score, label), slot in zip(expected, left[image].nonzero()[:, 0].tolist(), strict=True):
            assert averaged[image, slot].tolist() == pytest.approx(box, abs=1e-3)
            assert float(sums[image, slot]) == pytest.approx(score, abs=1e-5)
            assert int(labels[image, slot]) == label


@pytest.mark.parametrize("fixed_size", [False, True])
def test_detections(fixed_size: bool) -> None:
    """Many windows that agree come before one that is surer; classes may be averaged together."""
    rule = DetectionRule(0.1, 10, LIMIT, 3, 0.0, nms="average")
    boxes = torch.tensor([[[50.0, 50, 60, 60], [0.0, 0, 10, 10], [1.0, 0, 11, 10], [2.0, 0, 12, 10], [0.0, 0, 9, 9]]])
    scores, labels = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.05]]), torch.tensor([[0, 1, 1, 2, 1]])
    made, slots, kept, count = merged(boxes, scores, labels, scores > 0.1, rule, fixed_size=fixed_size)
    assert count.tolist() == [3]
    assert slots[0, :3].tolist() == [1, 0, 3]
    assert made[0, slots[0, 0]].tolist() == [0.5, 0, 10.5, 10]
    torch.testing.assert_close(kept[0, :3], torch.tensor([1.5 / 2.5, 0.9 / 1.9, 0.6 / 1.6]))
    together = DetectionRule(0.1, 10, LIMIT, 3, 0.0, nms="average", nms_per_class=False)
    assert merged(boxes, scores, labels, scores > 0.1, together, fixed_size=fixed_size)[3].tolist() == [2]
    nothing = merged(boxes, scores, labels, torch.zeros_like(scores, dtype=torch.bool), rule, fixed_size=fixed_size)
    assert nothing[3].tolist() == [0]
    empty = merged(boxes[:, :0], scores[:, :0], labels[:, :0], labels[:, :0] > 0, rule, fixed_size=fixed_size)
    assert empty[3].tolist() == [0]


@pytest.mark.parametrize("fixed_size", [False, True])
def test_views_are_averaged_with_the_sums_of_their_sums(fixed_size: bool) -> None:
    def view(box: list[float], sums: float) -> Detections:
        score = summed_score(torch.tensor([[sums]]))
        return Detections(torch.tensor([[box]]), score, torch.tensor([[1]]), torch.tensor([1]))

    rule = MergeRule(nms_overlap=LIMIT, max_detections=4, averages=True)
    found = merge_detections([view([0.0, 0, 10, 10], 1.5), view([2.0, 0, 12, 10], 0.5)], rule, fixed_size=fixed_size)
    assert found.count.tolist() == [1]
    assert found.boxes[0, 0].tolist() == [1, 0, 11, 10]
    torch.testing.assert_close(found.scores[0, 0], torch.tensor(2.0 / 3.0))
