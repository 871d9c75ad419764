"""All trackers of a run (train.trackers), on its first worker.

OUTPUT/trackers/NAME.json   what the run is called in a tracker that has names of its own, so that a resumed run goes on
                            there
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from pipelines.storage.run_files import json_object_bytes, read_json_object
from pipelines.training.config import TrainRun
from pipelines.training.trackers.availability import require_installed
from pipelines.training.trackers.background import BackgroundTracker
from pipelines.training.trackers.mlflow import MlflowTracker
from pipelines.training.trackers.tensorboard import TensorBoardTracker
from pipelines.training.trackers.tracker import Outcome, TrackedRun, Tracker
from pipelines.training.trackers.wandb import WandbTracker

_MEND = "delete it: the tracker then starts a new run"


class TrackerBoard:
    """Tells every tracker the same.

    Args:
        tensorboard: the one that works here; None without it.
        others: the rest.
    """

    def __init__(self, tensorboard: TensorBoardTracker | None, others: Sequence[Tracker]) -> None:
        self._tensorboard = tensorboard
        self._trackers: list[Tracker] = [*([] if tensorboard is None else [tensorboard]), *others]
        self._outcome: Outcome = "failed"
        self._results: Mapping[str, float] = {}

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name after so many steps."""
        for tracker in self._trackers:
            tracker.scalars(values, step)

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """A picture [H, W, 3] after so many steps."""
        for tracker in self._trackers:
            tracker.picture(name, pixels, step)

    def store(self) -> None:
        """TensorBoard's files, up to here, are in the folder of the run; from any thread.

        Raises:
            StorageError: they cannot be written there.
        """
        if self._tensorboard is not None:
            self._tensorboard.store()

    def conclude(self, outcome: Outcome, results: Mapping[str, float]) -> None:
        """What `close` is to say; without it the run counts as failed."""
        self._outcome, self._results = outcome, results

    def close(self) -> None:
        """Ends all of them."""
        for tracker in self._trackers:
            tracker.close(self._outcome, self._results)


def open_board(
    run: TrainRun, start: int, environment: Mapping[str, str], on_failure: Callable[[str, str], None]
) -> TrackerBoard:
    """The trackers that the run asks for.

    Args:
        run: configuration.
        start: steps done.
        environment: the driver's variables for them (`availability.check_trackers`).
        on_failure: called from other threads, once at most for each tracker, with its name and why it does not work.

    Raises:
        ConfigError: this machine lacks a package.
        StorageError: a file of OUTPUT/trackers is damaged.
    """
    os.environ.update(environment)
    tensorboard = TensorBoardTracker(run.output, start) if "tensorboard" in run.train.trackers else None
    others: list[Tracker] = []
    for name in run.train.trackers:
        if name != "tensorboard":
            require_installed(name)
            others.append(_in_background(name, run, on_failure))
    return TrackerBoard(tensorboard, others)


def _in_background(name: str, run: TrainRun, on_failure: Callable[[str, str], None]) -> BackgroundTracker:
    uri = storage.join(run.output, "trackers", f"{name}.json")
    identity = read_json_object(uri, {"identity": str}, _MEND)["identity"] if storage.exists(uri) else ""
    tracked = TrackedRun(PurePosixPath(run.output).name, run.output, asdict(run), identity)

    def start() -> Tracker:
        tracker = MlflowTracker(tracked) if name == "mlflow" else WandbTracker(tracked)
        if tracker.identity != identity:
            storage.write_bytes_atomically(uri, json_object_bytes({"identity": tracker.identity}))
        return tracker

    return BackgroundTracker(start, lambda reason: on_failure(name, reason))
