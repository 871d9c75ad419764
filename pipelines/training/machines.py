"""What a training run needs of a cluster, and how it waits for machines that are not there."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray

from maskrcnn_core.errors import UserError
from pipelines.cluster.autoscaler import live_nodes
from pipelines.cluster.capacity import ACCELERATOR_SHARE, Capacity, Demand, Resources, fits_now
from pipelines.cluster.devices import chooses_gpu, device_note, idle_note
from pipelines.cluster.waiting import Patience
from pipelines.training.config import TrainConfig, TrainRun

WAIT_SETTING = "train.wait_minutes"
_POLL_SECONDS = 5.0


def on_chosen_devices(run: TrainRun, capacity: Capacity, tell: Callable[[str], None]) -> TrainRun:
    """The run with `train.use_gpu` true or false; what was chosen and what lies idle is told."""
    settings = run.train
    uses_gpu = chooses_gpu(settings.use_gpu, capacity)
    notes = [device_note("train.use_gpu", settings.use_gpu, capacity)]
    if uses_gpu:
        notes.append(idle_note("train.num_workers", settings.num_workers + validation_tasks(run), capacity))
    for note in filter(None, notes):
        tell(note)
    return replace(run, train=replace(settings, use_gpu=uses_gpu))


def validation_tasks(run: TrainRun) -> int:
    """How many tasks of their own validate beside the workers."""
    settings = run.train
    return settings.validation_tasks if settings.validate_in == "task" and run.data.val.annotations else 0


def worker_resources(settings: TrainConfig, cpus: int) -> dict[str, float]:
    """What Ray reserves for a training worker.

    Args:
        settings: with `use_gpu` chosen.
        cpus: logical CPUs.
    """
    return {"CPU": float(cpus), **_gpu(settings)}


def _gpu(settings: TrainConfig) -> dict[str, float]:
    return {"GPU": 1.0} if settings.use_gpu else {}


def training_demand(run: TrainRun, cpus: int, readers: int) -> Demand:
    """What has to be free before the run can begin.

    Args:
        run: with `train.use_gpu` chosen.
        cpus: logical CPUs of a worker.
        readers: actors of one CPU beside each worker (`data.reader` ray).
    """
    settings = run.train
    field = "min_workers" if settings.min_workers else "num_workers"
    workers: int = getattr(settings, field)
    tasks = validation_tasks(run)
    kind = {f"accelerator_type:{settings.accelerator_type}": ACCELERATOR_SHARE} if settings.accelerator_type else {}
    bundles: list[Resources] = [{**worker_resources(settings, cpus), **kind}] * workers
    bundles += [{"CPU": 1.0, **_gpu(settings)}] * tasks
    bundles += [{"CPU": 1.0}] * (workers * readers)
    beside = f" with {readers} readers each (data.workers)" if readers else ""
    beside += f" and {tasks} validation task{'s' if tasks > 1 else ''}" if tasks else ""
    mends = [f"lower train.{field}", "add machines"]
    mends += ["lower data.workers or set data.reader to local"] if readers else []
    mends += ["set train.validate_in to workers"] if tasks else []
    mends += ["set train.use_gpu false" if settings.use_gpu else "set cluster.num_cpus for a cluster of this machine"]
    return Demand(
        f"train.{field}", f"{workers} workers{beside}", tuple(bundles), f"{', '.join(mends[:-1])}, or {mends[-1]}"
    )


class MachineWatch:
    """Looks, while workers that were lost are replaced, whether the machines for it are there; called again and again
    by the driver.

    Args:
        demand: of the run.
        capacity: of the cluster, of which the limits hold on.
        minutes: how long machines are waited for.
        progress: `ProgressLog` actor.
        tell: takes lines for the user.
    """

    def __init__(
        self, demand: Demand, capacity: Capacity, minutes: float, progress: Any, tell: Callable[[str], None]
    ) -> None:
        self._demand, self._capacity, self._progress = demand, capacity, progress
        self._patience = Patience(demand, WAIT_SETTING, minutes, tell)
        self._next = 0.0

    def __call__(self) -> None:
        """Returns at once unless it is time to look again.

        Raises:
            ConfigError: machines have been missing for too long.
        """
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _POLL_SECONDS
        if ray.get(self._progress.is_training.remote()):
            self._patience.reset()
            return
        capacity = replace(self._capacity, nodes=live_nodes())
        if capacity.is_own or fits_now(self._demand, capacity):
            self._patience.reset()
            return
        try:
            self._patience.go_on(capacity)
        except UserError as error:
            self._progress.fail.remote(error)  # workers that start all the same leave again
            raise
