"""Bad images are replaced in the same way wherever a batch is made, and told of where it is taken."""

import pickle
from collections.abc import Sequence

import pytest

from maskrcnn_core.data.dataset import Sample
from maskrcnn_core.errors import ImageError
from maskrcnn_core.training.batches import BadImage, BatchMaker, MadeBatch, delivered
from maskrcnn_core.training.loader import load_batches
from maskrcnn_core.training.sampler import BatchPlan

SIZES = [(3, 4)] * 12


class Pictures:
    """Images of which some are bad, also as partners; their COCO ids are 100 more than their indices."""

    def __init__(self, bad: Sequence[int]) -> None:
        self._bad = bad

    def __getitem__(self, sample: Sample) -> Sample:
        for index in (sample.index, sample.partner):
            if index in self._bad:
                raise ImageError("missing", f"image {100 + index}: no such file", 100 + index)
        return sample


def together(samples: Sequence[Sample]) -> list[Sample]:
    return list(samples)


def plan_of(world_size: int = 1, partner_probability: float = 0.0) -> BatchPlan:
    return BatchPlan(
        SIZES,
        batch_size=4,
        seed=1,
        world_size=world_size,
        short_sides=(4, 5, 6),
        partner_probability=partner_probability,
    )


def made(bad: Sequence[int], step: int, rank: int = 0, plan: BatchPlan | None = None) -> MadeBatch[list[Sample]]:
    outcome = BatchMaker(Pictures(bad), together, plan or plan_of(), rank)(step)
    assert isinstance(outcome, MadeBatch)
    return outcome


@pytest.mark.parametrize("step", [0, 2, 7])
def test_the_image_of_the_same_slot_in_the_next_batch_takes_the_place(step: int) -> None:
    plan = plan_of()
    whole, following = plan.batch(step), plan.batch(step + 1)
    for slot in range(4):
        bad = whole[slot].index
        outcome = made([bad], step)
        assert outcome.bad == (BadImage(100 + bad, "missing", f"image {100 + bad}: no such file"),)
        expected = [sample.index for sample in whole]
        expected[slot] = following[slot].index
        assert [sample.index for sample in outcome.batch] == expected
        replacement, replaced = outcome.batch[slot], whole[slot]  # mirrored and resized alike
        assert (replacement.flip, replacement.short_side) == (replaced.flip, replaced.short_side)


def test_a_replacement_that_is_bad_is_replaced_as_well() -> None:
    plan = plan_of()
    bad = [plan.batch(step)[1].index for step in (0, 1)]
    outcome = made(bad, 0)
    assert [image.image_id - 100 for image in outcome.bad] == bad
    assert outcome.batch[1].index == plan.batch(2)[1].index


def test_a_partner_that_is_bad_is_replaced_with_its_image() -> None:
    plan = plan_of(partner_probability=1.0)
    step = next(s for s in range(20) if plan.batch(s)[2].partner not in [sample.index for sample in plan.batch(s)])
    partner = plan.batch(step)[2].partner
    assert partner is not None
    outcome = made([partner], step, plan=plan)
    assert partner + 100 in [image.image_id for image in outcome.bad]
    assert all(partner not in (sample.index, sample.partner) for sample in outcome.batch)
    candidates = [plan.candidate(step, 2, number).partner for number in range(6)]
    assert len(set(candidates)) > 3  # each has one of its own


def test_ranks_share_the_batch_that_one_would_have() -> None:
    bad = [2, 7]
    for step in range(6):
        alone = made(bad, step)
        parts = [made(bad, step, rank, plan_of(world_size=3)) for rank in range(3)]
        assert [sample for part in parts for sample in part.batch] == alone.batch
        assert [image for part in parts for image in part.bad] == list(alone.bad)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 3])
def test_any_number_of_loaders_gives_the_same_batches_and_tells_of_the_same_images(workers: int, start: int) -> None:
    told: list[tuple[int, tuple[BadImage, ...]]] = []
    batches = load_batches(
        Pictures([5, 9]),
        together,
        plan_of(),
        start=start,
        stop=9,
        workers=workers,
        on_bad=lambda step, bad: told.append((step, tuple(bad))),
    )
    expected = [made([5, 9], step) for step in range(start, 9)]
    assert list(batches) == [outcome.batch for outcome in expected]
    assert told == [(step, outcome.bad) for step, outcome in enumerate(expected, start) if outcome.bad]
    assert len({image.image_id for _, bad in told for image in bad}) == 2


def test_nobody_who_counts_means_that_none_may_be_bad() -> None:
    plan = plan_of()
    bad = plan.batch(1)[0].index
    batches = load_batches(Pictures([bad]), together, plan, stop=3)
    if bad in [sample.index for sample in plan.batch(0)]:
        pytest.skip("the example shows the image at once")
    assert next(batches) == plan.batch(0)
    with pytest.raises(ImageError, match=f"image {bad + 100}: no such file") as caught:
        next(batches)
    assert (caught.value.status, caught.value.image_id) == ("missing", bad + 100)


def test_what_the_count_says_ends_the_batches_at_their_place() -> None:
    def too_many(step: int, bad: Sequence[BadImage]) -> None:
        raise ImageError("failed", f"too many at step {step}")

    outcomes = iter([MadeBatch("a"), MadeBatch("b", (BadImage(1, "missing", "gone"),)), MadeBatch("c")])
    batches = delivered(outcomes, 4, too_many)
    assert next(batches) == "a"
    with pytest.raises(ImageError, match="too many at step 5"):
        next(batches)


def test_where_every_image_is_bad_that_is_said() -> None:
    outcome = BatchMaker(Pictures(range(12)), together, plan_of(), 0)(0)
    assert isinstance(outcome, ImageError)
    assert str(outcome).startswith("none of 100 images in a row can be used, the last one: image 1")


def test_an_error_keeps_its_image_on_its_way_between_processes() -> None:
    error = ImageError("too_large", "image 7: large", 7)
    arrived = pickle.loads(pickle.dumps(error))
    assert (arrived.status, str(arrived), arrived.image_id) == ("too_large", "image 7: large", 7)
