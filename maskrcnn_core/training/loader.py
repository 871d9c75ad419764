"""Batches of a run of steps, prepared in the background while the network computes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from torch.utils.data import DataLoader

from maskrcnn_core.data.prefetch import prefetch as prefetch
from maskrcnn_core.errors import UserError
from maskrcnn_core.training.batches import BatchMaker, MadeBatch, OnBad, TrainingData, delivered, refuse_bad
from maskrcnn_core.training.sampler import BatchPlan

_Item = TypeVar("_Item")
_Batch = TypeVar("_Batch")


class _Batches(Generic[_Item, _Batch]):
    """Steps to batches as torch's loader processes want a data set. What a user can mend is a value: an exception they
    would turn into another one, of many lines."""

    def __init__(self, make: BatchMaker[_Item, _Batch]) -> None:
        self._make = make

    def __getitem__(self, step: int) -> MadeBatch[_Batch] | UserError:
        return self._make(step)


def load_batches(
    data: TrainingData[_Item],
    collate: Callable[[Sequence[_Item]], _Batch],
    plan: BatchPlan,
    *,
    rank: int = 0,
    start: int = 0,
    stop: int,
    workers: int = 0,
    depth: int = 2,
    on_bad: OnBad = refuse_bad,
) -> Iterator[_Batch]:
    """The batches of `rank` for steps `start` .. `stop` - 1, in order.

    Args:
        workers: loader processes, alive for all of the steps; 0 = one background thread (decoding releases Python's
            lock, so it overlaps with the network).
        depth: batches that the thread, or each process, keeps ready.
        on_bad: told of images that were replaced, where the batches are taken.

    Raises:
        UserError: at its place in the order, wherever it was found: of an annotation file or storage, or of `on_bad`.
    """
    make = BatchMaker(data, collate, plan, rank)
    steps = range(start, stop)
    if workers == 0:
        return delivered(prefetch((make(step) for step in steps), depth, alone=True), start, on_bad)
    loader: DataLoader[MadeBatch[_Batch] | UserError] = DataLoader(
        _Batches(make),  # type: ignore[arg-type]
        batch_size=None,  # an item is a batch
        sampler=steps,
        collate_fn=_as_it_is,  # type: ignore[arg-type] # torch's own would make lists of tuples
        num_workers=workers,
        prefetch_factor=depth,
        # A worker of Ray runs many threads; a forked child could inherit one of their locks.
        multiprocessing_context="forkserver",
    )
    return delivered(iter(loader), start, on_bad)


def _as_it_is(made: MadeBatch[_Batch] | UserError) -> MadeBatch[_Batch] | UserError:
    return made
