"""The newest numbers of a run, handed to Ray Train: its controller tells callbacks (`ray.train.UserCallback`), those
that RAY_TRAIN_CALLBACKS names among them."""

import time
from collections.abc import Mapping

import ray.train

from pipelines.training.job import TrainingJob

# A report is a barrier of all workers, and lies in a queue of one until the controller looks, every 2 seconds: another
# one before that makes everybody wait.
_SECONDS_BETWEEN = 10.0


class RayReports:
    """Reports of one worker. All workers call `send` equally often; the numbers are the first one's.

    Args:
        job: of this worker.
    """

    def __init__(self, job: TrainingJob) -> None:
        self._job = job
        self._numbers: dict[str, float] = {}
        self._sent = time.monotonic()

    def add(self, numbers: Mapping[str, float]) -> None:
        """Numbers by name, in the place of older ones."""
        self._numbers |= numbers

    def send(self, step: int, *, at_once: bool) -> None:
        """Report the numbers after `step` steps: those that do not wait `at_once`, others at most every ten seconds."""
        if not at_once and not self._job.agree(time.monotonic() - self._sent >= _SECONDS_BETWEEN):
            return
        self._sent = time.monotonic()
        ray.train.report({"step": step, **self._numbers})
