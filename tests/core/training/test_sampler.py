from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_core.data.dataset import Sample
from maskrcnn_core.training.repeat_factors import repeat_factors
from maskrcnn_core.training.sampler import BatchPlan, aspect_groups

LANDSCAPE, PORTRAIT = (3, 4), (4, 3)


def plan(sizes: list[tuple[int, int]], batch_size: int, *, world_size: int = 1, seed: int = 0) -> BatchPlan:
    return BatchPlan(
        sizes, batch_size=batch_size, seed=seed, world_size=world_size, flip_probability=0.5, short_sides=(8, 16, 24)
    )


def indices(batches: BatchPlan, steps: range) -> list[int]:
    return [sample.index for step in steps for sample in batches.batch(step)]


def test_one_epoch_holds_every_image_once() -> None:
    batches = plan([LANDSCAPE] * 8 + [PORTRAIT] * 4, 4)
    assert sorted(indices(batches, range(3))) == list(range(12))
    assert sorted(indices(batches, range(3, 6))) == list(range(12))
    assert indices(batches, range(3)) != indices(batches, range(3, 6))
    assert [batches.epoch(step) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_remainder_opens_the_next_epoch() -> None:
    # 5 landscape images in batches of 2: steps 0, 1 show four of them, step 2 opens with the fifth.
    batches = plan([LANDSCAPE] * 5, 2)
    assert sorted(indices(batches, range(5))[:5]) == [0, 1, 2, 3, 4]
    assert Counter(indices(batches, range(5))) == dict.fromkeys(range(5), 2)


@settings(max_examples=60, deadline=None)
@given(
    landscapes=st.integers(0, 30),
    portraits=st.integers(0, 30),
    batch_size=st.sampled_from([1, 2, 3, 4, 8]),
    seed=st.integers(0, 2**63),
)
def test_balance_and_orientation(landscapes: int, portraits: int, batch_size: int, seed: int) -> None:
    count = landscapes + portraits
    if count == 0:
        return
    batches = plan([LANDSCAPE] * landscapes + [PORTRAIT] * portraits, batch_size, seed=seed)
    steps = 3 * count // batch_size + 1
    seen = Counter(indices(batches, range(steps)))
    # Each stream runs at most one batch ahead of its share, so no image is more than two showings ahead of another.
    assert max(seen.values()) - min(seen.get(index, 0) for index in range(count)) <= 1 + -(-batch_size // min(count, 4))
    if min(landscapes, portraits) >= batch_size:
        for step in range(steps):
            assert len({sample.index < landscapes for sample in batches.batch(step)}) == 1
    assert all(a <= b for a, b in pairwise(batches.epoch(step) for step in range(steps)))


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_share_the_batch_of_one_worker(world_size: int) -> None:
    sizes = [LANDSCAPE] * 13 + [PORTRAIT] * 9
    one, many = plan(sizes, 8), plan(sizes, 8, world_size=world_size)
    for step in range(12):
        parts = [many.batch(step, rank) for rank in range(world_size)]
        assert [len(part) for part in parts] == [8 // world_size] * world_size
        assert [sample for part in parts for sample in part] == one.batch(step)


def test_access_in_any_order_gives_the_same_batches() -> None:
    sizes = [LANDSCAPE] * 7 + [PORTRAIT] * 5
    forward = [plan(sizes, 3).batch(step) for step in range(40)]
    batches = plan(sizes, 3)
    assert [batches.batch(step) for step in reversed(range(40))] == forward[::-1]


def test_fewer_images_than_a_batch() -> None:
    batches = plan([LANDSCAPE, PORTRAIT, LANDSCAPE], 8)
    assert Counter(indices(batches, range(3))) == {0: 8, 1: 8, 2: 8}
    assert [sample.index for sample in plan([PORTRAIT], 2).batch(5)] == [0, 0]


def test_augmentation_varies_with_the_sample_and_the_seed() -> None:
    batches = plan([LANDSCAPE] * 4, 4)
    samples = [sample for step in range(100) for sample in batches.batch(step)]
    flips = sum(sample.flip for sample in samples)
    assert 150 < flips < 250  # 400 draws at one half: five standard deviations
    sides = Counter(sample.short_side for sample in samples)
    assert set(sides) == {8, 16, 24}
    assert min(sides.values()) > 85  # 400 draws at one third
    assert plan([LANDSCAPE] * 4, 4, seed=1).batch(0) != batches.batch(0)
    never = BatchPlan([LANDSCAPE], batch_size=1, seed=0, flip_probability=0.0, short_sides=(8,))
    drawn = [sample for step in range(20) for sample in never.batch(step)]
    assert [replace(sample, seed=0) for sample in drawn] == [Sample(index=0, flip=False, short_side=8)] * 20
    assert len({sample.seed for sample in drawn}) == 20


@pytest.mark.parametrize(("sizes", "batch_size", "world_size"), [([], 2, 1), ([LANDSCAPE], 1, 2), ([LANDSCAPE], 0, 1)])
def test_unusable_arguments(sizes: list[tuple[int, int]], batch_size: int, world_size: int) -> None:
    with pytest.raises(ValueError, match="expected images, short sides and a batch_size"):
        plan(sizes, batch_size, world_size=world_size)


def test_finer_groups_of_aspect_ratios() -> None:
    # k = 1: borders at width / height = 1/2, 1 and 2, as torchvision's reference; a border belongs to the wider group.
    sizes = [(10, 25), (10, 20), (10, 15), (10, 10), (15, 10), (20, 10), (30, 10)]
    groups = [group.tolist() for group in aspect_groups(sizes, 1, factor=1)]
    assert groups == [[0, 1], [2, 3], [4, 5], [6]]
    batches = BatchPlan(sizes * 6, batch_size=3, seed=0, aspect_ratio_factor=1)
    group_of = {index: place for place, group in enumerate(groups) for index in group}
    for step in range(40):
        assert len({group_of[sample.index % 7] for sample in batches.batch(step)}) == 1


def test_a_group_too_small_for_a_batch_joins_its_neighbour() -> None:
    sizes = [(10, 40)] * 2 + [(10, 15)] * 4 + [(15, 10)] * 4 + [(40, 10)]
    groups = [group.tolist() for group in aspect_groups(sizes, 4, factor=1)]
    assert groups == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]


def test_repeat_factors_by_hand() -> None:
    # category 1 in 4 of 4 images, 2 in one: f = 1/4, r = sqrt(threshold / f).
    assert factors_of([{1}, {1}, {1, 2}, {1}], threshold=1.0) == [1.0, 1.0, 2.0, 1.0]
    assert factors_of([{1}, {1}, {1, 2}, set()], threshold=0.25) == [1.0] * 4
    assert factors_of([[3, 3], []], threshold=0.0) == [1.0, 1.0]
    assert factors_of([[], []], threshold=1.0) == [1.0, 1.0]
    assert repeat_factors((), 2, 0.5).tolist() == [1.0, 1.0]


def test_repeat_factors_do_not_depend_on_how_the_objects_come() -> None:
    images, categories = np.array([0, 0, 1, 2, 2, 2]), np.array([5, 7, 5, 5, 5, 0])
    whole = repeat_factors([(images, categories)], 4, 0.9)
    cut = repeat_factors([(images[i : i + 1], categories[i : i + 1]) for i in (5, 3, 0, 4, 1, 2)], 4, 0.9)
    assert whole.tolist() == cut.tolist()
    assert whole[0] == (0.9 * 4 / 1) ** 0.5


def factors_of(categories: Sequence[Collection[int]], threshold: float) -> list[float]:
    images = np.repeat(np.arange(len(categories)), [len(present) for present in categories])
    values = np.array([value for present in categories for value in present], np.int64)
    return repeat_factors([(images, values)], len(categories), threshold).tolist()


@settings(max_examples=40, deadline=None)
@given(
    factors=st.lists(st.floats(1.0, 6.0), min_size=1, max_size=20),
    batch_size=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 2**40),
)
def test_images_come_as_often_as_their_factor(factors: list[float], batch_size: int, seed: int) -> None:
    batches = BatchPlan([LANDSCAPE] * len(factors), batch_size=batch_size, seed=seed, repeat_factors=factors)
    epochs = 7
    steps = next(step for step in range(10**6) if batches.epoch(step) >= epochs)
    seen = Counter(sample.index for step in range(steps) for sample in batches.batch(step))
    shown = sum(seen.values())
    for index, factor in enumerate(factors):
        # One off by the rounding of a cycle, and the images that wait for the next batch.
        assert abs(seen[index] - epochs * factor) <= 1 + (batch_size - 1)
    assert epochs * sum(factors) - len(factors) - batch_size <= shown <= epochs * sum(factors) + len(factors)
    later = BatchPlan([LANDSCAPE] * len(factors), batch_size=batch_size, seed=seed, repeat_factors=factors)
    assert later.batch(steps) == batches.batch(steps)  # without having seen what comes before


def test_repeated_images_on_any_number_of_workers() -> None:
    sizes, factors = [LANDSCAPE] * 13 + [PORTRAIT] * 9, [1.0, 2.5] * 11
    one, two = (
        BatchPlan(sizes, batch_size=6, seed=3, world_size=n, repeat_factors=factors, partner_probability=0.5)
        for n in (1, 2)
    )
    for step in range(15):
        assert two.batch(step, 0) + two.batch(step, 1) == one.batch(step)


def test_having_a_partner_says_nothing_about_the_other_draws() -> None:
    plan = BatchPlan([LANDSCAPE] * 8, batch_size=8, seed=0, partner_probability=0.5, short_sides=(1, 2))
    samples = [sample for step in range(100) for sample in plan.batch(step)]
    pairs = Counter((sample.flip, sample.partner is None, sample.short_side) for sample in samples)
    assert len(pairs) == 8
    assert all(50 < count < 150 for count in pairs.values())  # 800 / 8, five standard deviations are 47
    sides = Counter((sample.partner, sample.short_side) for sample in samples if sample.partner is not None)
    assert len(sides) == 16


def test_partners_are_drawn_from_all_images_at_their_rate() -> None:
    batches = BatchPlan([LANDSCAPE] * 8, batch_size=8, seed=0, partner_probability=0.5)
    partners = Counter(sample.partner for step in range(100) for sample in batches.batch(step))
    assert 320 < partners.pop(None) < 480  # 800 draws at one half: more than five standard deviations
    assert set(partners) == set(range(8))
    never = BatchPlan([LANDSCAPE] * 8, batch_size=8, seed=0)
    assert all(sample.partner is None for step in range(9) for sample in never.batch(step))
    # The other draws of a sample do not depend on whether there are partners.
    assert [replace(s, partner=None) for s in batches.batch(4)] == never.batch(4)


def test_all_images_of_some_steps_have_one_size() -> None:
    """Of every rank, whatever ran before, and whatever stands in for a bad image; sizes follow the seed."""

    def sized(world_size: int = 1, seed: int = 0) -> BatchPlan:
        return BatchPlan(
            [LANDSCAPE] * 40,
            batch_size=4,
            seed=seed,
            world_size=world_size,
            short_sides=(320, 352, 384, 416),
            steps_per_size=10,
        )

    whole = sized()
    sides = [{sample.short_side for sample in whole.batch(step)} for step in range(200)]
    assert all(len(side) == 1 for side in sides)
    per_size = [sides[step : step + 10] for step in range(0, 200, 10)]
    assert all(group == [group[0]] * 10 for group in per_size)
    assert {side for (side,) in sides} == {320, 352, 384, 416}
    parts, resumed = sized(world_size=2), sized()
    for step in (199, 13, 20, 7):
        assert parts.batch(step, 0) + parts.batch(step, 1) == whole.batch(step) == resumed.batch(step)
        assert {whole.candidate(step, slot, 3).short_side for slot in range(4)} == sides[step]
    assert sides != [{sample.short_side for sample in sized(seed=1).batch(step)} for step in range(200)]
    # Nothing else changes with it.
    each = BatchPlan([LANDSCAPE] * 40, batch_size=4, seed=0, short_sides=(320, 352, 384, 416))
    for step in (0, 55):
        changed = [replace(sample, short_side=0) for sample in whole.batch(step)]
        assert changed == [replace(sample, short_side=0) for sample in each.batch(step)]
