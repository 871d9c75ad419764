"""Training batches that Ray actors prepare on whatever machine has free CPUs, in the exact order of the run.

A GPU machine may have too few CPU cores to decode and augment as fast as its GPU learns. Then other machines of the
cluster do it: each training worker has `data.workers` actors of one CPU, asks them for its share of step after step, a
few steps ahead, and takes the answers in the order of the steps. An actor computes what the local loader would, from
the same plan, so that the batches are equal bit by bit, and a run resumes at any step.

Why actors and not a Ray Data dataset: order and position have to be exact, and Ray Data 2.60 cannot resume within an
epoch. Its `preserve_order` gives order, but each training worker would run an executor of its own that takes all CPUs
of the cluster for its own budget. Actors that Ray restarts, and calls that it repeats, need no more than the step's
number; the window of steps asked for bounds what lies in the object store.

Ray places actors without GPUs on machines without GPUs first.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import ray
import torch

from maskrcnn_core.data.prefetch import prefetch
from maskrcnn_core.errors import ConfigError, UserError
from maskrcnn_core.training.batches import BatchMaker, MadeBatch, OnBad, TrainingData, delivered, refuse_bad
from maskrcnn_core.training.sampler import BatchPlan

_Item = TypeVar("_Item")
_Batch = TypeVar("_Batch")

# A machine that the cluster has yet to start takes minutes.
_START_SECONDS = 300.0
# Of an actor, and of a call: their machine was lost, or their memory ran out. More often than that is no accident.
_RESTARTS = 3


class BatchReader(Generic[_Item, _Batch]):
    """An actor's state: what makes a batch from the number of a step."""

    def __init__(self, make: BatchMaker[_Item, _Batch]) -> None:
        torch.set_num_threads(1)  # as in a process of torch's DataLoader: resizing has other last bits with several
        self._make = make

    def ready(self) -> None:
        """Answers once the actor has started."""

    def make(self, step: int) -> MadeBatch[_Batch] | UserError:
        """The batch of a step, or what a user has to mend: an error as a value arrives as it is."""
        return self._make(step)


@contextlib.contextmanager
def remote_batches(
    data: TrainingData[_Item],
    collate: Callable[[Sequence[_Item]], _Batch],
    plan: BatchPlan,
    *,
    rank: int,
    start: int,
    stop: int,
    readers: int,
    depth: int = 2,
    start_seconds: float = _START_SECONDS,
    on_bad: OnBad = refuse_bad,
) -> Iterator[Iterator[_Batch]]:
    """What `load_batches` gives: the batches of `rank` for steps `start` .. `stop` - 1, in order, while the block runs.

    Args:
        readers: actors of one CPU each.
        depth: batches that each has ready or in work.
        start_seconds: how long to wait for free CPUs; actors that have none by then are done without.
        on_bad: told of images that were replaced, where the batches are taken.

    Raises:
        ConfigError: not one actor has started in that time.
        UserError: (from the iterator) as of `load_batches`, at its place in the order.
    """
    # Outside of the placement group, whose CPUs are those of the training workers.
    actor = ray.remote(BatchReader).options(
        num_cpus=1, max_restarts=_RESTARTS, max_task_retries=_RESTARTS, scheduling_strategy="DEFAULT"
    )
    make = ray.put(BatchMaker(data, collate, plan, rank))
    actors = [actor.remote(make) for _ in range(readers)]
    batches: Any = None
    try:
        started = _started(actors, start_seconds)
        made = prefetch(_in_order(started, range(start, stop), depth * len(started)), depth=1)
        batches = delivered(made, start, on_bad)
        yield batches
    finally:
        for one in actors:  # first, so that nothing waits for a slow image
            ray.kill(one)
        if batches is not None:
            batches.close()


def _started(actors: Sequence[Any], seconds: float) -> list[Any]:
    """Those of the actors that have found a CPU."""
    answers = {one.ready.remote(): one for one in actors}
    ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=seconds)
    if not ready:
        raise ConfigError(
            f"data.workers: none of {len(actors)} readers of a training worker has started within {seconds:g} s, since "
            "the Ray cluster has no free CPU for it; add machines, lower data.workers, train.num_workers or "
            "train.threads_per_worker, or set data.reader to local"
        )
    ray.get(ready)  # an actor that failed says why
    return [one for answer, one in answers.items() if answer in ready]


def _in_order(actors: Sequence[Any], steps: range, window: int) -> Iterator[Any]:
    """What the actors make of the steps, at most `window` asked for and not yet taken."""
    asked: deque[Any] = deque()
    for index, step in enumerate(steps):
        if len(asked) == window:
            yield ray.get(asked.popleft())
        asked.append(actors[index % len(actors)].make.remote(step))
    while asked:
        yield ray.get(asked.popleft())
