"""What keeps the numbers and pictures of a run for people to look at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Outcome = Literal["finished", "interrupted", "failed"]
"""How a run, or one part of a run that is resumed later, has ended."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run when it starts, or goes on.

    Attributes:
        name: the last folder of its output.
        output: its folder.
        settings: the configuration as nested dictionaries.
        identity: the tracker's own name for the run, from its first start on; empty where it has none yet.
    """

    name: str
    output: str
    settings: Mapping[str, Any]
    identity: str


class Tracker(Protocol):
    """One place for numbers and pictures."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name after so many steps; a name may have slashes."""
        ...

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """A picture [H, W, 3] after so many steps."""
        ...

    def close(self, outcome: Outcome, results: Mapping[str, float]) -> None:
        """Nothing comes after it.

        Args:
            outcome: how the run has ended.
            results: numbers of the whole run, for trackers that show such beside those of steps.
        """
        ...
