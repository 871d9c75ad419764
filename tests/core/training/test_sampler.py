from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_core.data.dataset import Sample
from maskrcnn_core.training.sampler import BatchPlan

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
    assert [never.batch(step) for step in range(20)] == [[Sample(index=0, flip=False, short_side=8)]] * 20


@pytest.mark.parametrize(("sizes", "batch_size", "world_size"), [([], 2, 1), ([LANDSCAPE], 1, 2), ([LANDSCAPE], 0, 1)])
def test_unusable_arguments(sizes: list[tuple[int, int]], batch_size: int, world_size: int) -> None:
    with pytest.raises(ValueError, match="expected images, short sides and a batch_size"):
        plan(sizes, batch_size, world_size=world_size)
