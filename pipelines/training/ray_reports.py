"""The newest numbers of a run, handed to Ray Train: its controller tells callbacks (`ray.train.UserCallback`), those
that RAY_TRAIN_CALLBACKS names among them."""

import importlib
import os
import time
from collections.abc import Mapping

import ray.train

from maskrcnn_core.errors import ConfigError
from pipelines.training.job import TrainingJob

# A report is a barrier of all workers, and lies in a queue of one until the controller looks, every 2 seconds: another
# one before that makes everybody wait.
_SECONDS_BETWEEN = 10.0
_NAMES = "RAY_TRAIN_CALLBACKS"


def named_callbacks() -> list[ray.train.UserCallback]:
    """One of each `UserCallback` that the variable RAY_TRAIN_CALLBACKS names (module.Class, with commas between).

    Ray Train makes them as well, and calls only those among them that are of its internal kinds (seen in 2.60).

    Raises:
        ConfigError: there is no such class.
    """
    names = [name.strip() for name in os.environ.get(_NAMES, "").split(",")]
    kinds = [_named_class(name) for name in names if name]
    return [kind() for kind in kinds if issubclass(kind, ray.train.UserCallback)]


def _named_class(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{_NAMES}: {name!r} cannot be imported ({error}); expected package.module.Class") from error
    if not isinstance(kind, type):
        raise ConfigError(f"{_NAMES}: {name!r} is {kind!r}, expected a class")
    return kind


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
