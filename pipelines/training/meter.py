"""What a training loop counts: losses, steps left out, seconds, and the seconds spent waiting for input."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from maskrcnn_core.errors import UserError
from maskrcnn_core.training.step import StepResult

_SHOWN_IMAGES = 20
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class SkippedStep:
    """A step that left the weights alone, as one worker saw it.

    Attributes:
        step: from 0.
        wrong: losses of the worker that were not finite, as `name = value`.
        image_ids: its images.
    """

    step: int
    wrong: tuple[str, ...]
    image_ids: tuple[int, ...]


class LossMeter:
    """Sums of the losses since the last report, and the count of skipped steps, one step behind the device.

    Reading a step's losses at once would make the host wait for the device in every step. So a wrong loss is noticed
    one step late at most, and always before a checkpoint; the weights are safe in the meantime (`training.guard`).

    Args:
        world_size: number of workers; each calls every method equally often.
        max_skipped: so many skipped steps in a row are an error.
        skipped: skipped steps of the run so far.
    """

    def __init__(self, world_size: int, max_skipped: int, skipped: int = 0) -> None:
        self._world_size, self._max_skipped = world_size, max_skipped
        self._pending: tuple[StepResult, int, Sequence[int]] | None = None
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._row: list[SkippedStep] = []
        self.skipped = skipped
        """Skipped steps of the whole run."""
        self.result: StepResult | None = None
        """The last step that was looked at."""

    def add(self, result: StepResult, step: int, image_ids: Sequence[int]) -> None:
        """Keep a step, after `settle` for the one before."""
        self.settle()
        self._pending = (result, step, image_ids)

    def settle(self) -> None:
        """Look at the last step.

        Raises:
            UserError: too many steps in a row were skipped; names the losses and images.
        """
        if self._pending is None:
            return
        result, step, image_ids = self._pending
        self._pending, self.result = None, result
        values = dict(zip(result.names, result.losses.tolist(), strict=True))
        if result.skipped is None or not bool(result.skipped):
            self._row = []
            self._steps += 1
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            return
        self.skipped += 1
        wrong = tuple(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
        self._row.append(SkippedStep(step, wrong, tuple(image_ids)))
        if len(self._row) >= self._max_skipped:
            raise UserError(_hopeless(_everyones(self._row, self._world_size), result.learning_rate))

    def means(self) -> dict[str, float]:
        """Mean losses over the steps since the last call, skipped ones left out, and over all workers."""
        self.settle()
        parts = _everyones((self._sums, self._steps), self._world_size)
        means = {
            name: sum(sums.get(name, 0.0) for sums, _ in parts) / max(1, sum(steps for _, steps in parts))
            for name in parts[0][0]
        }
        self._sums, self._steps = {}, 0
        return means


def _everyones(part: _Item, world_size: int) -> list[_Item]:
    if world_size == 1:
        return [part]
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, part)
    return parts


def _hopeless(rows: list[list[SkippedStep]], rate: float) -> str:
    """Names those images whose worker saw a wrong loss; all of them where only gradients were wrong."""
    everything = [skipped for row in rows for skipped in row]
    guilty = [skipped for skipped in everything if skipped.wrong] or everything
    images = list(dict.fromkeys(image for skipped in guilty for image in skipped.image_ids))
    shown = ", ".join(map(str, images[:_SHOWN_IMAGES])) + (" ..." if len(images) > _SHOWN_IMAGES else "")
    first, last = rows[0][0].step, rows[0][-1].step
    causes = ", ".join(guilty[0].wrong) or "gradients that are not finite"
    return (
        f"steps {first} to {last}: loss is not finite {len(rows[0])} times in a row: {causes} (image ids {shown}; "
        f"learning rate {rate:.3g}), expected finite losses; the weights are those before step {first}; lower "
        "train.learning_rate, lengthen train.warmup_steps or set train.clip_norm, and start with a new output"
    )


class Stopwatch:
    """Seconds of training since the last report; the pauses for validation and checkpoints do not count."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._laps = 0.0
        self._waited = 0.0

    def total(self) -> float:
        """Seconds since the start, pauses left out."""
        return self._laps + time.perf_counter() - self._begin

    def lap(self) -> tuple[float, float]:
        """Seconds since the last call, pauses left out, and how many of them were spent waiting for input."""
        now = time.perf_counter()
        seconds, self._begin = now - self._begin, now
        waited, self._waited = self._waited, 0.0
        self._laps += seconds
        return seconds, waited

    def waiting_for(self, items: Iterator[_Item]) -> Iterator[_Item]:
        """The same items; the time until each arrives counts as waiting."""
        while True:
            begin = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - begin
            yield item

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._begin += time.perf_counter() - begin
