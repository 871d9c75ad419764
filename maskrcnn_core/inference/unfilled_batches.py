"""Batches that wait for more images of their shape: while images come without end, and not for ever.

An image of a rare shape would wait for the next one as long as that takes, and what asked about it with it; many rare
shapes would fill the memory. So what has waited longest goes as it is, after so many images or bytes.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

_Item = TypeVar("_Item")

# With COCO's sizes, of which some nine images fit into a batch, a batch holds 6.3 on average, 5.4 where half as many
# are waited for, and 7.1 with twice as many: then a file of a thousand images would be done with the next one only.
_MOST_IMAGES_LATER = 512

# Decoded images in the host's memory.
_MOST_BYTES = 512 << 20


@dataclass
class _Unfilled(Generic[_Item]):
    """Items of a shape, and the number of the first of them among all that have come."""

    first: int
    items: list[_Item]
    nbytes: int = 0


class UnfilledBatches(Generic[_Item]):
    """Items by shape until there are enough of one."""

    def __init__(self) -> None:
        # In the order of their first items: a shape that is taken and comes again is a new entry at the end.
        self._by_shape: dict[Hashable, _Unfilled[_Item]] = {}
        self._number = 0
        self._nbytes = 0

    def add(self, shape: Hashable, item: _Item, nbytes: int, most: int) -> Iterator[list[_Item]]:
        """One more item comes.

        Args:
            shape: items of equal shapes fit together.
            nbytes: its memory.
            most: how many of this shape fill a batch, 1 or more.

        Yields:
            What goes now: the batch that it fills, and those that have waited too long.
        """
        self._number += 1
        unfilled = self._by_shape.setdefault(shape, _Unfilled(self._number, []))
        unfilled.items.append(item)
        unfilled.nbytes += nbytes
        self._nbytes += nbytes
        if len(unfilled.items) >= most:
            yield self._taken(shape)
        while self._by_shape and self._is_too_much():
            yield self._taken(next(iter(self._by_shape)))

    def take_all(self) -> Iterator[list[_Item]]:
        """Whatever waits."""
        while self._by_shape:
            yield self._taken(next(iter(self._by_shape)))

    def _is_too_much(self) -> bool:
        oldest = next(iter(self._by_shape.values()))
        return self._number - oldest.first >= _MOST_IMAGES_LATER or self._nbytes > _MOST_BYTES

    def _taken(self, shape: Hashable) -> list[_Item]:
        unfilled = self._by_shape.pop(shape)
        self._nbytes -= unfilled.nbytes
        return unfilled.items
