"""Runs in Weights & Biases: on its server, or with WANDB_MODE=offline in OUTPUT/wandb, for `wandb sync`."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from pipelines.training.trackers.tracker import Outcome, TrackedRun

_PROJECT = "maskrcnn"


class WandbTracker:
    """One run in Weights & Biases, the same one when the training goes on.

    Its steps may only grow, and a run that was cut off repeats some: so the training's step is a number of its own that
    the others are drawn over.

    Args:
        run: what is tracked.

    Raises:
        wandb.errors.Error: the server cannot be reached, or refuses.
    """

    def __init__(self, run: TrackedRun) -> None:
        import wandb  # takes seconds, and may not be installed

        self._picture = wandb.Image
        self.identity = run.identity or uuid.uuid4().hex
        self._temporary = "" if storage.is_local(run.output) else tempfile.mkdtemp(prefix="maskrcnn-wandb-")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            id=self.identity,
            resume="allow",
            config=dict(run.settings),
            dir=self._temporary or storage.filesystem_and_path(run.output)[1],
            # The terminal is the job's own, and code and repository are nobody's business.
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._run.log({**values, "step": step})

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """See `Tracker`."""
        self._run.log({name: self._picture(pixels), "step": step})

    def close(self, outcome: Outcome, results: Mapping[str, float]) -> None:
        """See `Tracker`; what has not come to its end counts as failed there until it goes on."""
        self._run.summary.update(dict(results))
        self._run.finish(exit_code=0 if outcome == "finished" else 1)
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)
