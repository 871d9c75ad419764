"""Batches of a run of steps, prepared in the background while the network computes."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from torch.utils.data import DataLoader

from maskrcnn_core.data.dataset import Sample
from maskrcnn_core.data.prefetch import prefetch as prefetch
from maskrcnn_core.errors import UserError
from maskrcnn_core.training.sampler import BatchPlan

_Item = TypeVar("_Item")
_Batch = TypeVar("_Batch")
_Item_co = TypeVar("_Item_co", covariant=True)


class TrainingData(Protocol[_Item_co]):
    """Anything whose items are a pure function of the sample."""

    def __getitem__(self, sample: Sample, /) -> _Item_co:
        """The image and its objects, as `collate` takes them."""
        ...


class _Steps:
    """The batches of one rank from step to step, as torch's DataLoader wants a sampler."""

    def __init__(self, plan: BatchPlan, rank: int, start: int, stop: int) -> None:
        self._plan, self._rank, self._range = plan, rank, range(start, stop)

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[list[Sample]]:
        return (self._plan.batch(step, self._rank) for step in self._range)


class _Batches(Generic[_Item, _Batch]):
    """Whole batches as torch's loader processes are to make them, with what a user can mend as a value: an exception
    they would turn into another one, of many lines."""

    def __init__(self, data: TrainingData[_Item], collate: Callable[[Sequence[_Item]], _Batch]) -> None:
        self._data, self._collate = data, collate

    def __getitem__(self, samples: Sequence[Sample]) -> _Batch | UserError:
        try:
            return self._collate([self._data[sample] for sample in samples])
        except UserError as error:
            return error


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
) -> Iterator[_Batch]:
    """The batches of `rank` for steps `start` .. `stop` - 1, in order.

    Args:
        workers: loader processes, alive for all of the steps; 0 = one background thread (decoding releases Python's
            lock, so it overlaps with the network).
        depth: batches that the thread, or each process, keeps ready.

    Raises:
        UserError: of an image or its annotations, at its place in the order, wherever it was read.
    """
    steps = _Steps(plan, rank, start, stop)
    if workers == 0:
        return prefetch((collate([data[sample] for sample in samples]) for samples in steps), depth)
    loader: DataLoader[_Batch | UserError] = DataLoader(
        _Batches(data, collate),  # type: ignore[arg-type]
        batch_size=None,  # an item is a batch
        sampler=steps,  # type: ignore[arg-type]
        collate_fn=_as_it_is,  # torch's own would make lists of tuples
        num_workers=workers,
        prefetch_factor=depth,
        # A worker of Ray runs many threads; a forked child could inherit one of their locks.
        multiprocessing_context="forkserver",
    )
    return _raising(iter(loader))


def _as_it_is(batch: _Batch) -> _Batch:
    return batch


def _raising(batches: Iterator[_Batch | UserError]) -> Generator[_Batch]:
    """The batches; an error among them is raised."""
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch
