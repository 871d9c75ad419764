"""What a training loop counts: losses and seconds."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch.distributed as dist

from maskrcnn_core.training.step import StepResult, require_finite


class LossMeter:
    """Sums of the losses since the last report, and the check that they are finite, one step behind the device.

    Reading a step's losses at once would make the host wait for the device in every step. So a wrong loss is found
    one step late at most, and always before a checkpoint.
    """

    def __init__(self) -> None:
        self._pending: tuple[StepResult, int, Sequence[int]] | None = None
        self._sums: dict[str, float] = {}
        self._steps = 0
        self.result: StepResult | None = None
        """The last step that was checked."""

    def add(self, result: StepResult, step: int, image_ids: Sequence[int]) -> None:
        """Keep a step, after `settle` for the one before."""
        self.settle()
        self._pending = (result, step, image_ids)

    def settle(self) -> None:
        """Check and add the last step.

        Raises:
            UserError: a loss is not finite.
        """
        if self._pending is None:
            return
        result, step, image_ids = self._pending
        for name, value in require_finite(result, step=step, image_ids=image_ids).items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps, self._pending, self.result = self._steps + 1, None, result

    def means(self, world_size: int) -> dict[str, float]:
        """Mean losses over the steps since the last call and over all ranks; every rank has to call it."""
        self.settle()
        means = {name: value / max(1, self._steps) for name, value in self._sums.items()}
        if world_size > 1:
            everyone: list[Any] = [None] * world_size
            dist.all_gather_object(everyone, means)
            means = {name: sum(other[name] for other in everyone) / world_size for name in means}
        self._sums, self._steps = {}, 0
        return means


class Stopwatch:
    """Seconds of training since the last report; the pauses for validation and checkpoints do not count."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._laps = 0.0

    def total(self) -> float:
        """Seconds since the start, pauses left out."""
        return self._laps + time.perf_counter() - self._begin

    def lap(self) -> float:
        """Seconds since the last call, pauses left out."""
        now = time.perf_counter()
        seconds, self._begin = now - self._begin, now
        self._laps += seconds
        return seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._begin += time.perf_counter() - begin
