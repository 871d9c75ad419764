"""How many processes of how many threads label the most on this machine: measured at the start, on the run's images.

Small networks gain from several processes of one thread each, large ones from one process with all cores: which it is
depends on the network, its input and the caches of the processor.
"""

from dataclasses import dataclass, field

from pipelines.labelling.progress import Work

# Groups of a process that are looked at, after a first one that loads kernels and fills caches, and for how long.
_GROUPS = 2
_LEAST_SECONDS = 3.0

# What a change has to bring; and the time that must be left, or it cannot pay for loading another detector.
_LEAST_GAIN = 1.05
_LEAST_SECONDS_LEFT = 60.0


@dataclass(frozen=True)
class Shape:
    """Processes, and the threads of each."""

    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{_counted(self.processes, 'process', 'es')} of {_counted(self.threads, 'thread', 's')}"

    def halved(self) -> "Shape":
        """Twice the processes of half the threads."""
        return Shape(2 * self.processes, self.threads // 2)


@dataclass
class _Measured:
    """What the processes of a shape do.

    Attributes:
        groups: how many each place has finished.
        images, busy: of those that count.
    """

    groups: dict[int, int] = field(default_factory=dict)
    images: dict[int, int] = field(default_factory=dict)
    busy: dict[int, float] = field(default_factory=dict)

    def add(self, place: int, work: Work) -> None:
        self.groups[place] = self.groups.get(place, 0) + 1
        if self.groups[place] > 1:
            self.images[place] = self.images.get(place, 0) + work.images
            self.busy[place] = self.busy.get(place, 0.0) + work.busy

    def rate(self, processes: int) -> float | None:
        """Images a second of all; None = too little is known."""
        known = [
            self.images[place] / self.busy[place]
            for place in range(processes)
            if self.groups.get(place, 0) > _GROUPS and self.busy[place] >= _LEAST_SECONDS
        ]
        return sum(known) if len(known) == processes else None


class ThreadProbe:
    """Tries twice the processes of half the threads as long as that labels more.

    Args:
        first: the shape to begin with.
        most: processes that there is memory for.
    """

    def __init__(self, first: Shape, most: int) -> None:
        self.shape = first
        self._most = most
        self._rates: list[tuple[Shape, float]] = []
        self._measured = _Measured()
        self.is_over = not self._may_halve()

    def add(self, place: int, work: Work) -> None:
        """A process has finished a group of images."""
        if work.images and work.busy > 0:
            self._measured.add(place, work)

    def decide(self, images_left: int) -> Shape | None:
        """The shape to change to now; None = none."""
        rate = None if self.is_over else self._measured.rate(self.shape.processes)
        if rate is None:
            return None
        self._rates.append((self.shape, rate))
        is_worse = len(self._rates) > 1 and rate < _LEAST_GAIN * self._rates[-2][1]
        if is_worse:
            self.is_over, self.shape = True, self._rates[-2][0]
            return self.shape
        if not self._may_halve() or images_left < _LEAST_SECONDS_LEFT * rate:
            self.is_over = True
            return None
        self.shape, self._measured = self.shape.halved(), _Measured()
        return self.shape

    def findings(self) -> str | None:
        """The choice and its reason in a line, once more than one shape was measured."""
        if not self.is_over or len(self._rates) < 2:
            return None
        rates = ", ".join(f"{shape}: {rate:.1f}" for shape, rate in self._rates)
        return f"computing with {self.shape}, as measured in images/s ({rates})"

    def _may_halve(self) -> bool:
        return self.shape.threads > 1 and 2 * self.shape.processes <= self._most


def _counted(number: int, noun: str, plural: str) -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"
