"""Runs in MLflow: on the server that MLFLOW_TRACKING_URI names, or in files beside a local run (OUTPUT/mlruns)."""

import functools
import hashlib
import json
import os
import posixpath
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from pipelines.training.output import flat_settings
from pipelines.training.trackers.tracker import Outcome, TrackedRun

_EXPERIMENT = "maskrcnn"
_LONGEST_VALUE = 500
_AT_ONCE = 100  # what a server takes in one request
_STATUS: Mapping[Outcome, str] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MlflowTracker:
    """One run in MLflow, the same one when the training goes on.

    Settings are kept as they were at the first start: MLflow never changes a parameter.

    Args:
        run: what is tracked.

    Raises:
        mlflow.exceptions.MlflowException: the server cannot be reached, or refuses.
    """

    def __init__(self, run: TrackedRun) -> None:
        uri = _tracking_uri(run.output)
        import mlflow  # takes a second, and may not be installed

        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        # An address may hold a password: the file that keeps this has its digest only.
        server = hashlib.sha256(uri.encode()).hexdigest()[:16]
        self._run_id = self._resumed(run.identity, server) or self._started(run)
        self.identity = f"{self._run_id}@{server}"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(metric_name(name), value, now, step) for name, value in values.items()]
        for first in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(self._run_id, metrics=metrics[first : first + _AT_ONCE])

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """See `Tracker`."""
        self._client.log_image(self._run_id, pixels, artifact_file=f"{name}-{step:08d}.png")

    def close(self, outcome: Outcome, results: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in results.items():
            self._client.log_metric(self._run_id, name, value)
        self._client.set_terminated(self._run_id, _STATUS[outcome])

    def _resumed(self, identity: str, server: str) -> str | None:
        """The run of an earlier start; None where there is none on this server."""
        run_id, _, known_server = identity.partition("@")
        if not run_id or known_server != server:
            return None
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _started(self, run: TrackedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        made = self._client.create_run(number, run_name=run.name, tags={"output": run.output})
        parameters = [
            self._entities.Param(key, _shown(value)) for key, value in flat_settings(dict(run.settings)).items()
        ]
        for first in range(0, len(parameters), _AT_ONCE):
            self._client.log_batch(made.info.run_id, params=parameters[first : first + _AT_ONCE])
        return str(made.info.run_id)


def _tracking_uri(output: str) -> str:
    """Where runs are kept. Files beside the run want a word of consent from MLflow 3.7 on, which prefers a database."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return Path(storage.filesystem_and_path(storage.join(output, "mlruns"))[1]).as_uri()


@functools.cache
def metric_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and `_ - . / :` and blanks, and as a path in its shortest form."""
    allowed = re.sub(r"[^\w\-./: ]", "_", name)
    parts = ["_" if part in ("", ".", "..") else part for part in allowed.split("/")]
    return posixpath.join(*parts)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
