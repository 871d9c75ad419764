import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from maskrcnn_core.data.dataset import Sample
from maskrcnn_core.training.loader import load_batches, prefetch
from maskrcnn_core.training.sampler import BatchPlan


class Indices:
    """Data whose items are their samples."""

    def __getitem__(self, sample: Sample) -> Sample:
        return sample


def as_list(items: Sequence[Sample]) -> list[Sample]:
    return list(items)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_of_the_plan(workers: int) -> None:
    plan = BatchPlan([(3, 4)] * 5, batch_size=4, seed=0, world_size=2)
    found = list(load_batches(Indices(), as_list, plan, rank=1, start=3, stop=9, workers=workers))
    assert found == [plan.batch(step, 1) for step in range(3, 9)]


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
    items.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_error_comes_at_its_place() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    items = prefetch(broken(), depth=4)
    assert next(items) == 1
    with pytest.raises(OSError, match="disk"):
        next(items)
