"""Which object a point stands for, by eye; centreness; the loss against its parts."""

import pytest
import torch
from torch.nn import functional

from maskrcnn_core.model.box_coding import EdgeCoding
from maskrcnn_core.model.dense.anchors import RatioAnchors, pyramid_anchors
from maskrcnn_core.model.dense.point_loss import PointLoss, assign_points, centreness
from maskrcnn_core.model.loss_counts import divided, own_count
from maskrcnn_core.model.matching import POSITIVE
from maskrcnn_core.structures import DenseOutputs, ImageFeatures, Targets
from tests.core.model.dense.test_losses import FixedHead

STRIDES, SHAPES = (8, 16), [(8, 8), (4, 4)]
ANCHORS = pyramid_anchors(
    RatioAnchors((8.0, 16.0), (1.0,), rounded=False, fitted_strides=False, offset=0.5),
    STRIDES,
    SHAPES,
    (64, 64),
    torch.device("cpu"),
)


def targets(*boxes: tuple[float, float, float, float]) -> Targets:
    real = torch.ones(1, len(boxes), dtype=torch.bool)
    return Targets(torch.tensor([list(boxes)]), torch.arange(len(boxes))[None] % 3, real, ~real)


def points_of(objects: Targets, which: int) -> list[tuple[int, int]]:
    """Positives of the finest level that stand for an object: (row, column)."""
    matches = assign_points(ANCHORS, objects, 1.5)
    taken = (matches.kinds == POSITIVE) & (matches.objects == which)
    return [(int(i) // 8, int(i) % 8) for i in taken[0, :64].nonzero()[:, 0]]


def test_points_are_near_the_centre_of_their_object() -> None:
    """Centres at 4, 12, 20, ...; the object's centre is (20, 28), and 1.5 sides are 12 pixels, not reached."""
    assert points_of(targets((0.0, 8, 40, 48)), 0) == [(r, c) for r in (2, 3, 4) for c in (1, 2, 3)]


def test_a_point_lies_inside_and_takes_the_smallest() -> None:
    """A thin object has only the row that lies in it; the small one takes its point from the large one around it."""
    assert points_of(targets((0.0, 26, 40, 30)), 0) == [(3, 1), (3, 2), (3, 3)]
    both = targets((0.0, 8, 40, 48), (17.0, 25, 23, 31))
    assert points_of(both, 1) == [(3, 2)]
    assert (3, 2) not in points_of(both, 0)
    assert len(points_of(both, 0)) == 8


def test_a_level_is_for_its_sizes() -> None:
    """The farthest edge is within 64 pixels on the finest of two levels, beyond on the other."""
    small, large = targets((0.0, 0, 60, 60)), targets((-40.0, -40, 100, 100))
    for objects, level in ((small, 0), (large, 1)):
        positive = assign_points(ANCHORS, objects, 1.5).kinds[0] == POSITIVE
        assert bool(positive[:64].any()) == (level == 0)
        assert bool(positive[64:].any()) == (level == 1)


def test_padding_and_crowds_are_nobodys() -> None:
    objects = targets((0.0, 8, 40, 48))
    nobody = Targets(objects.boxes, objects.labels, ~objects.valid, ~objects.valid)
    assert not bool((assign_points(ANCHORS, nobody, 1.5).kinds == POSITIVE).any())


def test_centreness_by_eye() -> None:
    """In the middle 1; a quarter along and half way up sqrt(1/3); at an edge 0."""
    box = torch.tensor([[0.0, 0, 40, 20]] * 3)
    points = torch.tensor([[19.0, 9, 21, 11], [9, 9, 11, 11], [-1, 9, 1, 11]])
    torch.testing.assert_close(centreness(box, points), torch.tensor([1.0, (1 / 3) ** 0.5, 0.0]))


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("with_objects", [True, False])
def test_losses_are_divided_by_the_positives(with_objects: bool, fixed_size: bool) -> None:
    outputs = DenseOutputs(
        [torch.zeros(1, len(level), 3) for level in ANCHORS],
        [torch.ones(1, len(level), 4) for level in ANCHORS],
        [torch.zeros(1, len(level)) for level in ANCHORS],
    )
    head = FixedHead(outputs)
    maps = [torch.zeros(1, 1, *shape) for shape in SHAPES]
    features = ImageFeatures(maps, STRIDES, torch.tensor([[64, 64]]), torch.zeros(1, 3, 64, 64), fixed_size=fixed_size)
    objects = targets((0.0, 8, 40, 48))
    if not with_objects:
        objects = Targets(objects.boxes, objects.labels, ~objects.valid, ~objects.valid)
    loss = PointLoss(0.7, 0.25, 2.0, 1.5, 0.0, "giou")
    got = divided(loss(head, features, ANCHORS, EdgeCoding(), objects), own_count)
    assert set(got) == {"dense_class", "dense_box", "dense_centreness"}
    unit, positives = float(0.25 * torch.tensor(2.0).log()), 9 if with_objects else 0
    expected = unit * (positives * (0.25 + 1.5) + (80 - positives) * 2.25) / max(positives, 1)
    assert float(got["dense_class"]) == pytest.approx(expected, rel=1e-5)
    if not with_objects:
        assert float(got["dense_box"]) == float(got["dense_centreness"]) == 0
        return
    boxes = objects.boxes[0].expand(9, 4)
    taken = (assign_points(ANCHORS, objects, 1.5).kinds[0] == POSITIVE).nonzero()[:, 0]
    wanted = centreness(boxes, torch.cat(ANCHORS)[taken])
    expected = float(functional.binary_cross_entropy_with_logits(torch.zeros(9), wanted))
    assert float(got["dense_centreness"]) == pytest.approx(expected, rel=1e-5)
    assert 0 < float(got["dense_box"]) < 2
