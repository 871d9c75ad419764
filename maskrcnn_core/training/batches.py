"""The batch of a step, made anywhere: of images that can be used, with what is wrong with those that cannot.

An image that is missing, damaged or not as annotated must not end a run of days. The next candidate of its slot takes
its place (`BatchPlan.candidate`), which is a function of seed, step and slot, and of which images are bad: so the
batches are the same on any number of ranks, loader processes and machines, and after a resume. What was bad travels
with the batch to whoever takes it, who counts and judges.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from maskrcnn_core.data.dataset import Sample
from maskrcnn_core.data.prefetch import close
from maskrcnn_core.errors import ImageError, ImageStatus, UserError
from maskrcnn_core.training.sampler import BatchPlan

_Item = TypeVar("_Item")
_Batch = TypeVar("_Batch")
_Item_co = TypeVar("_Item_co", covariant=True)

# Where half of all images are bad, so many in a row are never seen; where all are, this is soon known.
_MOST_CANDIDATES = 100


class TrainingData(Protocol[_Item_co]):
    """Anything whose items are a pure function of the sample."""

    def __getitem__(self, sample: Sample, /) -> _Item_co:
        """The image and its objects, as `collate` takes them; an `ImageError` with the id of the image that is bad."""
        ...


@dataclass(frozen=True)
class BadImage:
    """An image that could not be used.

    Attributes:
        image_id: its COCO id.
        status: what kind of error it is.
        reason: what is wrong, with the place of the file.
    """

    image_id: int
    status: ImageStatus
    reason: str


@dataclass(frozen=True)
class MadeBatch(Generic[_Batch]):
    """A batch, and what could not be used for it."""

    batch: _Batch
    bad: tuple[BadImage, ...] = ()


OnBad = Callable[[int, Sequence[BadImage]], None]
"""Told of the bad images of a step, if there are any, before its batch is handed out; what it raises ends the run."""


def refuse_bad(step: int, bad: Sequence[BadImage]) -> None:
    """An `OnBad` that lets none pass."""
    raise ImageError(bad[0].status, bad[0].reason, bad[0].image_id)


class BatchMaker(Generic[_Item, _Batch]):
    """Makes the batch of any step, in whatever process.

    Args:
        data: of the items.
        collate: items to a batch.
        plan: of the run.
        rank: of the training worker.
    """

    def __init__(
        self, data: TrainingData[_Item], collate: Callable[[Sequence[_Item]], _Batch], plan: BatchPlan, rank: int
    ) -> None:
        self._data, self._collate, self._plan, self._rank = data, collate, plan, rank

    def __call__(self, step: int) -> MadeBatch[_Batch] | UserError:
        """The batch of a step, or what a user has to mend, as a value: so it passes between processes as it is."""
        bad: list[BadImage] = []
        try:
            first = zip(self._plan.slots(self._rank), self._plan.batch(step, self._rank), strict=True)
            items = [self._item(step, slot, sample, bad) for slot, sample in first]
            return MadeBatch(self._collate(items), tuple(bad))
        except UserError as error:
            return error

    def _item(self, step: int, slot: int, sample: Sample, bad: list[BadImage]) -> _Item:
        """That of the first candidate that can be used; those before it go to `bad`."""
        for number in range(1, _MOST_CANDIDATES + 1):
            try:
                return self._data[sample]
            except ImageError as error:
                if error.image_id is None:
                    raise
                bad.append(BadImage(error.image_id, error.status, str(error)))
            sample = self._plan.candidate(step, slot, number)
        last = bad[-1]
        raise ImageError(
            last.status, f"none of {_MOST_CANDIDATES} images in a row can be used, the last one: {last.reason}"
        )


def delivered(made: Iterator[MadeBatch[_Batch] | UserError], start: int, on_bad: OnBad) -> Generator[_Batch]:
    """The batches of the steps from `start`; errors are raised at their place. Closing it closes `made`, too."""
    try:
        for step, outcome in enumerate(made, start):
            if isinstance(outcome, UserError):
                raise outcome
            if outcome.bad:
                on_bad(step, outcome.bad)
            yield outcome.batch
    finally:
        close(made)
