"""What was wrong with single entries of an annotation file, counted: parts add up, only the first are kept as text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FaultKind = Literal["image", "object", "field", "no mask", "mask", "keypoints"]
"""image = an image was left out; object = an annotation was; field = its box, area or flag was mended; no mask = it has
no mask that can be used, and counts for its box; mask, keypoints = a part of them was left out or mended."""

MOST_KEPT = 20
"""Lines of one kind."""
_SHOWN = 3
_SENTENCES: dict[FaultKind, tuple[str, str]] = {
    "image": ("image is left out with its annotations", "images are left out with their annotations"),
    "object": ("annotation is left out", "annotations are left out"),
    "field": ("box, area, flag or size is mended", "boxes, areas, flags or sizes are mended"),
    "no mask": (
        "object has no usable mask and is, where masks count, a region to ignore",
        "objects have no usable mask and are, where masks count, regions to ignore",
    ),
    "mask": ("mask is mended", "masks are mended"),
    "keypoints": ("annotation is mended in its keypoints", "annotations are mended in their keypoints"),
}


@dataclass(frozen=True)
class Faults:
    """Entries of some images that are wrong in themselves.

    Attributes:
        counts: by kind.
        first: by kind, one line for each of the first.
    """

    counts: Mapping[FaultKind, int] = field(default_factory=dict)
    first: Mapping[FaultKind, tuple[str, ...]] = field(default_factory=dict)

    def __add__(self, other: "Faults") -> "Faults":
        kinds = [kind for kind in _SENTENCES if kind in self.counts or kind in other.counts]
        return Faults(
            {kind: self.counts.get(kind, 0) + other.counts.get(kind, 0) for kind in kinds},
            {kind: (self.first.get(kind, ()) + other.first.get(kind, ()))[:MOST_KEPT] for kind in kinds},
        )

    def __bool__(self) -> bool:
        return bool(self.counts)

    def without(self, *kinds: FaultKind) -> "Faults":
        """All but those of some kinds, which do not matter to the one who asks."""
        return Faults(
            {kind: count for kind, count in self.counts.items() if kind not in kinds},
            {kind: lines for kind, lines in self.first.items() if kind not in kinds},
        )

    def lines(self) -> tuple[str, ...]:
        """A sentence for each kind: what was done with how many, and the first of them."""
        return tuple(
            f"{self.counts[kind]} {one if self.counts[kind] == 1 else several}: {'; '.join(self.first[kind][:_SHOWN])}"
            + (f"; and {self.counts[kind] - _SHOWN} more" if self.counts[kind] > _SHOWN else "")
            for kind, (one, several) in _SENTENCES.items()
            if self.counts.get(kind)
        )

    def all_first(self) -> tuple[str, ...]:
        """The first entries of every kind, a line each."""
        return tuple(line for kind in _SENTENCES for line in self.first.get(kind, ()))


class FaultList:
    """Collects faults while entries are read."""

    def __init__(self) -> None:
        self._counts: dict[FaultKind, int] = {}
        self._first: dict[FaultKind, list[str]] = {}

    def add(self, kind: FaultKind, where: str, what: str) -> None:
        """One more.

        Args:
            kind: of fault.
            where: the entry.
            what: is wrong with it, and what is done.
        """
        self._counts[kind] = self._counts.get(kind, 0) + 1
        lines = self._first.setdefault(kind, [])
        if len(lines) < MOST_KEPT:
            lines.append(f"{where}: {what}")

    def extend(self, later: Faults) -> None:
        """More, of entries that come later in the file."""
        for kind, count in later.counts.items():
            self._counts[kind] = self._counts.get(kind, 0) + count
            lines = self._first.setdefault(kind, [])
            lines += later.first[kind][: MOST_KEPT - len(lines)]

    def faults(self) -> Faults:
        """All so far."""
        return Faults(dict(self._counts), {kind: tuple(lines) for kind, lines in self._first.items()})
