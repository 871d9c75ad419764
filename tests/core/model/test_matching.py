"""Which candidates stand for which object, by eye; how many of them are drawn."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher

from maskrcnn_core.boxes import pairwise_iou
from maskrcnn_core.model.matching import (
    IGNORED,
    NEGATIVE,
    POSITIVE,
    Matches,
    _overlaps_at_once,
    _overlaps_by_image,
    match,
    sample,
    seeded_uniform,
)
from maskrcnn_core.structures import Targets


def targets_of(boxes: list[list[float]], crowd: list[bool] | None = None, padding: int = 0) -> Targets:
    crowds = torch.tensor([(crowd or [False] * len(boxes)) + [False] * padding])
    real = torch.tensor([[True] * len(boxes) + [False] * padding])
    padded = torch.tensor([boxes + [[0.0] * 4] * padding], dtype=torch.float32).reshape(1, -1, 4)
    return Targets(padded, torch.zeros(padded.shape[:2], dtype=torch.int64), real & ~crowds, crowds)


each_size = pytest.mark.parametrize("fixed_size", [False, True])


def rpn_match(
    candidates: list[list[float]] | Tensor, targets: Targets, fixed_size: bool, rescue: bool = True
) -> Matches:
    return match(
        torch.as_tensor(candidates, dtype=torch.float32)[None],
        targets,
        positive_overlap=0.7,
        negative_overlap=0.3,
        rescue_best=rescue,
        crowd_overlap=0.7,
        fixed_size=fixed_size,
    )


OBJECT = [0.0, 0, 10, 10]
# IoU with the object: 1, 0.7, 0.5, 0.3, 0.2, 0.
CANDIDATES = [OBJECT, [0.0, 0, 10, 7], [0.0, 0, 10, 5], [0.0, 0, 10, 3], [0.0, 0, 10, 2], [50.0, 50, 60, 60]]


@each_size
def test_bands_by_eye(fixed_size: bool) -> None:
    found = rpn_match(CANDIDATES, targets_of([OBJECT]), fixed_size)
    assert found.kinds.tolist() == [[POSITIVE, POSITIVE, IGNORED, IGNORED, NEGATIVE, NEGATIVE]]
    assert found.objects[0, :2].tolist() == [0, 0]


@each_size
def test_one_threshold_leaves_no_band(fixed_size: bool) -> None:
    found = match(
        torch.tensor([CANDIDATES]),
        targets_of([OBJECT]),
        positive_overlap=0.5,
        negative_overlap=0.5,
        rescue_best=False,
        crowd_overlap=0.7,
        fixed_size=fixed_size,
    )
    assert found.kinds.tolist() == [[POSITIVE] * 3 + [NEGATIVE] * 3]


@each_size
def test_the_best_candidates_of_an_object_are_rescued(fixed_size: bool) -> None:
    # The second object's best overlaps are twice 0.2: both are rescued; 0.1 is not.
    second = [100.0, 0, 110, 10]
    candidates = [OBJECT, [100.0, 0, 110, 2], [100.0, 8, 110, 10], [100.0, 0, 110, 1]]
    targets = targets_of([OBJECT, second])
    assert rpn_match(candidates, targets, fixed_size).kinds.tolist() == [[POSITIVE, POSITIVE, POSITIVE, NEGATIVE]]
    assert rpn_match(candidates, targets, fixed_size).objects[0, :3].tolist() == [0, 1, 1]
    assert rpn_match(candidates, targets, fixed_size, rescue=False).kinds.tolist() == [[POSITIVE] + [NEGATIVE] * 3]


@each_size
def test_an_object_that_nothing_touches_rescues_nothing(fixed_size: bool) -> None:
    assert (rpn_match(CANDIDATES, targets_of([[500.0, 500, 510, 510]]), fixed_size).kinds == NEGATIVE).all()


@each_size
def test_crowds_are_never_positive_and_hide_negatives(fixed_size: bool) -> None:
    # 0.8 of the second candidate lies in the crowd, 0.6 of the third.
    crowd = [100.0, 0, 200, 100]
    candidates = [crowd, [98.0, 0, 108, 10], [96.0, 0, 106, 10], [0.0, 0, 10, 10]]
    assert rpn_match(candidates, targets_of([crowd], [True]), fixed_size).kinds.tolist() == [
        [IGNORED, IGNORED, NEGATIVE, NEGATIVE]
    ]
    inside = [100.0, 0, 110, 10]
    found = rpn_match([inside], targets_of([crowd, inside], [True, False]), fixed_size)
    assert (found.kinds.item(), found.objects.item()) == (POSITIVE, 1)


@each_size
def test_padding_changes_nothing_even_with_garbage_in_it(fixed_size: bool) -> None:
    bare, padded = targets_of([OBJECT]), targets_of([OBJECT], padding=2)
    padded.boxes[0, 1:] = torch.tensor([50.0, 50, 60, 60])  # exactly the last candidate
    one, other = rpn_match(CANDIDATES, bare, fixed_size), rpn_match(CANDIDATES, padded, fixed_size)
    assert torch.equal(one.kinds, other.kinds)
    assert torch.equal(one.objects[one.kinds == POSITIVE], other.objects[one.kinds == POSITIVE])


@each_size
def test_without_objects_everything_is_negative(fixed_size: bool) -> None:
    assert (rpn_match(CANDIDATES, targets_of([], padding=1), fixed_size).kinds == NEGATIVE).all()


@each_size
@pytest.mark.parametrize("rescue", [True, False])
def test_is_torchvisions_matcher(rescue: bool, fixed_size: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(220, 2, generator=generator) * 60
    boxes = torch.cat((corners, corners + 5 + torch.rand(220, 2, generator=generator) * 40), dim=1)
    objects, candidates = boxes[:6], boxes
    expected = Matcher(0.7, 0.3, allow_low_quality_matches=rescue)(pairwise_iou(objects, candidates))
    found = rpn_match(candidates, targets_of(objects.tolist()), fixed_size, rescue)
    kinds = torch.where(expected == -2, IGNORED, torch.where(expected == -1, NEGATIVE, POSITIVE))
    assert torch.equal(found.kinds[0], kinds)
    assert {-1, 0, 1} <= set(kinds.tolist())
    assert torch.equal(found.objects[0][kinds == POSITIVE], expected[kinds == POSITIVE])


def kinds_of(positives: int, negatives: int, ignored: int) -> list[int]:
    kinds = torch.tensor([POSITIVE] * positives + [NEGATIVE] * negatives + [IGNORED] * ignored)
    return kinds[torch.randperm(len(kinds), generator=torch.Generator().manual_seed(0))].tolist()


@pytest.mark.parametrize(
    ("positives", "negatives", "ignored", "expected"),
    [
        (10, 80, 10, (4, 12)),  # a quarter of 16 positive
        (2, 90, 8, (2, 14)),  # negatives fill up
        (50, 5, 45, (4, 5)),  # too few negatives: the rest stays empty
        (0, 100, 0, (0, 16)),
        (100, 0, 0, (4, 0)),
        (0, 0, 100, (0, 0)),
    ],
)
def test_counts(positives: int, negatives: int, ignored: int, expected: tuple[int, int]) -> None:
    kinds = torch.tensor([kinds_of(positives, negatives, ignored)] * 3)
    drawn = sample(kinds, 16, 0.25)
    assert drawn.index.shape == drawn.positive.shape == drawn.valid.shape == (3, 16)
    for image in range(3):
        real = drawn.valid[image]
        chosen = drawn.index[image][real]
        assert len(chosen.unique()) == len(chosen)
        assert torch.equal(kinds[image, chosen] == POSITIVE, drawn.positive[image][real])
        assert not (kinds[image, chosen] == IGNORED).any()
        assert (int(drawn.positive[image].sum()), int((real & ~drawn.positive[image]).sum())) == expected
        # Positives first, then negatives, then empty slots.
        rank = drawn.positive[image].int() + real.int()
        assert (rank.diff() <= 0).all()
    assert not drawn.positive[:, drawn.max_positives :].any()


def test_fewer_candidates_than_samples() -> None:
    drawn = sample(torch.tensor([[POSITIVE, NEGATIVE, IGNORED, NEGATIVE]]), 16, 0.5)
    assert drawn.index.shape == (1, 4)
    assert drawn.valid.tolist() == [[True, True, True, False]]
    assert sorted(drawn.index[0, :3].tolist()) == [0, 1, 3]
    assert drawn.positive.tolist() == [[True, False, False, False]]


def test_all_positive_fraction() -> None:
    drawn = sample(torch.full((1, 6), POSITIVE), 4, 1.0)
    assert drawn.positive.all()
    assert drawn.max_positives == 4


def test_draws_are_random_and_repeat_with_the_seed() -> None:
    kinds = torch.full((1, 1000), NEGATIVE)
    torch.manual_seed(1)
    one, other = sample(kinds, 10, 0.5).index, sample(kinds, 10, 0.5).index
    assert not torch.equal(one.sort().values, other.sort().values)
    torch.manual_seed(1)
    assert torch.equal(sample(kinds, 10, 0.5).index, one)


@pytest.mark.parametrize("rescue_best", [True, False])
def test_image_by_image_is_the_same_as_at_once(rescue_best: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    corners = torch.rand(2, 40, 2, generator=generator) * 80
    objects = torch.cat((corners, corners + torch.rand(2, 40, 2, generator=generator) * 30 + 1), dim=-1)
    corners = torch.rand(1, 300, 2, generator=generator) * 90
    candidates = torch.cat((corners, corners + torch.rand(1, 300, 2, generator=generator) * 30 + 1), dim=-1)
    valid = torch.rand(2, 40, generator=generator) < 0.7
    valid[1] = False  # an image without objects
    targets = Targets(objects, torch.zeros(2, 40, dtype=torch.int64), valid, torch.zeros(2, 40, dtype=torch.bool))
    best, index, leading = _overlaps_by_image(candidates, targets, rescue_best=rescue_best)
    expected_best, expected_index, expected_leading = _overlaps_at_once(candidates, targets, rescue_best=rescue_best)
    assert torch.equal(best, expected_best)
    assert torch.equal(leading, expected_leading)
    overlapping = expected_best > 0
    assert overlapping.any()
    assert torch.equal(index[overlapping], expected_index[overlapping])


def test_seeded_numbers_belong_to_the_image_and_are_uniform() -> None:
    places = torch.arange(4000)[None]
    numbers = seeded_uniform(torch.tensor([3, 2**62, -5]), places)
    again = seeded_uniform(torch.tensor([-5, 3]), places[:, 1000:])
    assert torch.equal(again, numbers[[2, 0], 1000:])
    assert numbers.dtype == torch.float64
    assert 0.0 <= numbers.min() <= numbers.max() < 1.0
    # Ten bins of 400: five standard deviations are 95.
    for row in numbers:
        assert (torch.histc(row, 10, 0.0, 1.0) - 400).abs().max() < 95
    correlation = torch.corrcoef(numbers)
    assert (correlation - torch.eye(3)).abs().max() < 0.08  # five standard deviations of 4000 independent pairs


def drawn_of(kinds: Tensor, names: Tensor, seed: int, positive_fraction: float = 0.25) -> tuple[list[int], list[int]]:
    """Names of the positives and the negatives that are drawn of one image, in order."""
    found = sample(kinds[None], 64, positive_fraction, torch.tensor([seed]))
    chosen, real, positive = names[found.index[0]], found.valid[0], found.positive[0]
    return chosen[positive].tolist(), chosen[real & ~positive].tolist()


@pytest.mark.parametrize("proposals", [0, 3, 20, 63, 64, 65, 700])
@pytest.mark.parametrize("objects", [0, 1, 9])
def test_an_image_with_a_seed_draws_the_same_in_any_company(proposals: int, objects: int) -> None:
    """Beside fuller images slots that are not real come after its proposals and after its objects."""
    generator = torch.Generator().manual_seed(proposals)
    own = torch.randint(0, 2, (proposals,), generator=generator)
    truth = torch.full((objects,), POSITIVE)
    names = torch.arange(proposals + objects)
    alone = drawn_of(torch.cat((own, truth)), names, 12)
    for more_proposals, more_objects in ((0, 1), (1, 0), (30, 2), (1000, 40)):
        gap, rest = torch.full((more_proposals,), IGNORED), torch.full((more_objects,), IGNORED)
        kinds = torch.cat((own, gap, truth, rest))
        called = torch.cat((names[:proposals], gap, names[proposals:], rest))
        assert drawn_of(kinds, called, 12) == alone
    other = drawn_of(torch.cat((own, truth)), names, 13)
    assert proposals < 20 or other != alone


@pytest.mark.parametrize(("positives", "negatives"), [(60, 40), (200, 40), (3, 5), (0, 9), (150, 1000), (128, 384)])
def test_as_many_as_torchvision_draws_also_of_few_candidates(positives: int, negatives: int) -> None:
    kinds = torch.tensor(kinds_of(positives, negatives, 7))
    found = sample(kinds[None], 512, 0.25)
    (positive,), (negative,) = BalancedPositiveNegativeSampler(512, 0.25)([kinds])
    assert int(found.positive.sum()) == int(positive.sum())
    assert int((found.valid & ~found.positive).sum()) == int(negative.sum())


def test_no_two_of_many_anchors_have_one_number() -> None:
    numbers = seeded_uniform(torch.tensor([5]), torch.arange(300_000)[None])[0]
    assert len(numbers.unique()) == len(numbers)
