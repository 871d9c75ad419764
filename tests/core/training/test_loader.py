import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from maskrcnn_core.data.dataset import Sample
from maskrcnn_core.data.transform import prepare_image
from maskrcnn_core.errors import AnnotationError, ImageError, StorageError, UserError
from maskrcnn_core.training.batches import BatchMaker, MadeBatch
from maskrcnn_core.training.loader import load_batches, prefetch
from maskrcnn_core.training.sampler import BatchPlan


class Indices:
    """Data whose items are their samples."""

    def __getitem__(self, sample: Sample) -> Sample:
        return sample


def as_list(items: Sequence[Sample]) -> list[Sample]:
    return list(items)


class Pair(NamedTuple):
    first: Sample
    rest: tuple[int, ...]


def as_pair(items: Sequence[Sample]) -> Pair:
    return Pair(items[0], tuple(range(len(items))))


class Broken:
    """Data of which the third batch has one image that is wrong in some way."""

    def __init__(self, error: Exception, bad: Sample) -> None:
        self._error, self._bad = error, bad

    def __getitem__(self, sample: Sample) -> Sample:
        if sample == self._bad:
            raise self._error
        return sample


MISTAKES = (
    ImageError("unreadable", "image 7 (a/b.jpg): not an image"),
    AnnotationError("annotation 3: bbox"),
    StorageError("s3://bucket: no such bucket"),
    UserError("something else"),
)


@pytest.mark.parametrize("error", MISTAKES, ids=lambda error: type(error).__name__)
def test_a_mistake_leaves_a_loader_process_as_a_value(error: UserError) -> None:
    plan = BatchPlan([(3, 4)] * 6, batch_size=2, seed=0)
    bad = plan.batch(1)[1]
    make = BatchMaker(Broken(error, bad), as_list, plan, 0)
    assert make(0) == MadeBatch(plan.batch(0))
    arrived = pickle.loads(pickle.dumps(make(1)))
    assert (type(arrived), str(arrived), vars(arrived)) == (type(error), str(error), vars(error))
    with pytest.raises(OSError, match="disk"):  # no mistake of the user's
        BatchMaker(Broken(OSError("disk"), bad), as_list, plan, 0)(1)


def test_a_mistake_is_the_same_wherever_it_is_found() -> None:
    plan = BatchPlan([(3, 4)] * 20, batch_size=2, seed=0)
    raised = []
    for workers in (0, 1):
        batches = load_batches(Broken(MISTAKES[0], plan.batch(2, 0)[1]), as_pair, plan, stop=8, workers=workers)
        for step in range(2):  # what collate makes comes as it was made
            batch = next(batches)
            assert batch == Pair(plan.batch(step, 0)[0], (0, 1))
            assert isinstance(batch, Pair)
            assert isinstance(batch.rest, tuple)
        with pytest.raises(ImageError) as found:
            next(batches)
        raised.append((str(found.value), found.value.status))
    assert raised[0] == raised[1] == ("image 7 (a/b.jpg): not an image", "unreadable")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_of_the_plan(workers: int) -> None:
    plan = BatchPlan([(3, 4)] * 5, batch_size=4, seed=0, world_size=2)
    found = list(load_batches(Indices(), as_list, plan, rank=1, start=3, stop=9, workers=workers))
    assert found == [plan.batch(step, 1) for step in range(3, 9)]


class Resized:
    """Pictures of noise, resized as training resizes."""

    def __getitem__(self, sample: Sample) -> Tensor:
        pixels = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
        return prepare_image(pixels, size=(67, 83), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def stacked(items: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(items))


def test_a_thread_resizes_to_the_bits_of_a_process() -> None:
    """torch has a kernel for one thread and another one for several, which differ in their last bits."""
    plan = BatchPlan([(3, 4)] * 4, batch_size=2, seed=0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        by_thread = list(load_batches(Resized(), stacked, plan, stop=2))
        assert torch.get_num_threads() == 2
        by_process = list(load_batches(Resized(), stacked, plan, stop=2, workers=1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(by_thread, by_process, strict=True))


def test_no_steps_left() -> None:
    plan = BatchPlan([(3, 4)], batch_size=1, seed=0)
    assert list(load_batches(Indices(), as_list, plan, start=4, stop=4)) == []


def test_prefetch_works_ahead_by_its_depth() -> None:
    made: list[int] = []

    def count() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    items = prefetch(count(), depth=2)
    assert next(items) == 0
    deadline = time.monotonic() + 5.0
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert made == [0, 1, 2, 3]  # one taken, two waiting, one that found the queue full
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_error_comes_at_its_place() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    items = prefetch(broken(), depth=4)
    assert next(items) == 1
    with pytest.raises(OSError, match="disk"):
        next(items)
