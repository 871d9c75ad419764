"""What goes through a worker's detector: the images of a chunk, each with the place where its record belongs."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.records.proposals import ProposalRecord
from pipelines.labelling.read_ahead import ReadImage

Record: TypeAlias = ImageRecord | ProposalRecord


@dataclass(eq=False)
class Group:
    """Images that the board knows by one name.

    Attributes:
        key: its name.
        size: images in it.
        attempts: how often it was begun without an end, this time included; 0 = not yet this time.
        alone: its images, where they go one by one.
        records: those that are there, in any order.
    """

    key: int
    size: int
    attempts: int = 0
    alone: list["Asked"] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """All records are there."""
        return len(self.records) == self.size


@dataclass(frozen=True, eq=False)
class Asked:
    """An image in the stream, and where its record goes."""

    image_id: int
    place: int
    group: Group
    chunk: "ChunkInStream"
    image: ReadImage


class ChunkInStream:
    """A chunk whose images go through the stream; made by `DetectorStream.chunk`.

    Args:
        ids: of its images.
        group_size: images of a group.
        put: takes an image into the stream.
    """

    def __init__(self, ids: Sequence[int], group_size: int, put: Callable[[Asked], None]) -> None:
        self._ids, self._group_size, self._put = ids, group_size, put
        starts = range(0, len(ids), group_size)
        self.groups = [Group(ids[start], min(group_size, len(ids) - start)) for start in starts]
        self._records: dict[int, Record] = {}
        self._is_done = threading.Event()
        self._error: BaseException | None = None
        self._number = 0
        self.is_closed = False

    def put(self, image: ReadImage) -> None:
        """The next image of the chunk.

        Raises:
            UserError, or whatever else has ended the stream.
        """
        if self._error is not None:
            image.ticket.leave()
            raise self._error
        place, self._number = self._number, self._number + 1
        self._put(Asked(self._ids[place], place, self.groups[place // self._group_size], self, image))

    def records(self) -> list[Record]:
        """Of all its images, in order, once they are there.

        Raises:
            As `put`.
        """
        self._is_done.wait()
        if self._error is not None:
            raise self._error
        return [self._records[place] for place in range(len(self._ids))]

    def take(self, place: int, record: Record) -> None:
        """One of its records, from the detector's thread."""
        self._records[place] = record
        if len(self._records) == len(self._ids):
            self._is_done.set()

    def fail(self, error: BaseException) -> None:
        """There will be no more records."""
        self._error, self.is_closed = error, True
        self._is_done.set()
