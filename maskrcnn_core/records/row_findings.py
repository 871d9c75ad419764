"""What checks of label rows report: rules that are broken, how often, and the first rows that break them."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

_SHOWN_PER_CHECK = 5


@dataclass(frozen=True)
class Offence:
    """One rule that is broken.

    Attributes:
        check: the rule in a word or two.
        got, expected: what is there, and what should be.
        image_id: the row's; None where a file or the run as a whole is meant, or the row has none.
        file: uri of the label file; empty where no single file is to blame, or none is known yet.
        row: index of the row among those that were checked, from 0; None where no row is meant.
    """

    check: str
    got: str
    expected: str
    image_id: int | None = None
    file: str = ""
    row: int | None = None


@dataclass(frozen=True)
class Findings:
    """Broken rules: how often each, and the first ones of each.

    Attributes:
        counts: offences by `check`.
        first: at most some for each check, in order of rows.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    first: tuple[Offence, ...] = ()

    def __add__(self, other: "Findings") -> "Findings":
        counts = dict(Counter(self.counts) + Counter(other.counts))
        shown: Counter[str] = Counter()
        first = []
        for offence in (*self.first, *other.first):
            shown[offence.check] += 1
            if shown[offence.check] <= _SHOWN_PER_CHECK:
                first.append(offence)
        return Findings(counts, tuple(first))


NOTHING_FOUND = Findings()


def one(check: str, got: str, expected: str, image_id: int | None = None, file: str = "") -> Findings:
    """A single offence as findings."""
    return Findings({check: 1}, (Offence(check, got, expected, image_id, file),))


class Placed(Protocol):
    """Rows, or the objects of rows, as far as an offence names them."""

    @property
    def row(self) -> npt.NDArray[np.int64]:
        """[N] the row of each."""
        ...

    def image_id(self, index: int) -> int | None:
        """The image of one; None where its row has no id."""
        ...


def findings_at(
    bad: npt.NDArray[np.bool_], among: Placed, check: str, got: Callable[[int], str], expected: str
) -> Findings:
    """Findings of one check.

    Args:
        bad: [N] where the rule is broken.
        among: what was checked.
        check, expected: as of `Offence`.
        got: says what is there at an index where `bad` is set.
    """
    indices = np.flatnonzero(bad)
    if len(indices) == 0:
        return NOTHING_FOUND
    first = tuple(
        Offence(check, got(index), expected, among.image_id(index), row=int(among.row[index]))
        for index in indices[:_SHOWN_PER_CHECK].tolist()
    )
    return Findings({check: len(indices)}, first)
