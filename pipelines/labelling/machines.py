"""How a labelling run chooses its devices, and waits for machines that are not there."""

from collections.abc import Callable
from dataclasses import replace

from pipelines.cluster.autoscaler import read_capacity
from pipelines.cluster.capacity import Capacity, Demand, Resources, placed_ever, placed_now
from pipelines.cluster.devices import chooses_gpu, device_note, idle_note
from pipelines.cluster.waiting import wait_for_machines
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.planning import first_cpus

_WAIT_SETTING = "label.wait_minutes"
_FEED: Resources = {"CPU": 1.0}

# Ray Data's pools grow to no more; a cluster without limits has no number of its own.
_MOST_WORKERS = 1000


def on_this_cluster(label: LabelConfig, tell: Callable[[str], None]) -> LabelConfig:
    """The settings for the connected cluster, once it has room for the first workers.

    Args:
        label: as they were given.
        tell: takes lines for the user.

    Returns:
        `use_gpu` true or false; `max_workers` what the cluster can grow to, where it had no room yet.

    Raises:
        ConfigError: it can never have room, or had none in time.
    """
    capacity = read_capacity()
    label = _on_chosen_devices(label, capacity, tell)
    demand = _demand(label, capacity)
    if capacity.is_own or placed_now(demand, capacity) == len(demand.bundles):
        return label
    if label.wait_minutes or not label.max_workers:
        wait_for_machines(demand, _WAIT_SETTING, label.wait_minutes, tell)
    if label.num_workers or label.max_workers:
        return label
    return replace(label, max_workers=_workers_ever(label, capacity))


def _on_chosen_devices(label: LabelConfig, capacity: Capacity, tell: Callable[[str], None]) -> LabelConfig:
    chosen = replace(label, use_gpu=chooses_gpu(label.use_gpu, capacity))
    note = device_note("label.use_gpu", label.use_gpu, capacity)
    if note:
        tell(note)
    if chosen.use_gpu and label.num_workers:
        note = idle_note("label.num_workers", label.num_workers, capacity, per_gpu=label.workers_per_gpu)
        if note:
            tell(note)
    return chosen


def _worker(label: LabelConfig, capacity: Capacity) -> Resources:
    machines = [kind.resources.get("CPU", 0.0) for kind in capacity.node_types or () if kind.most != 0]
    gpu = {"GPU": 1.0 / label.workers_per_gpu} if label.use_gpu else {}
    return {"CPU": float(first_cpus(label, machines)), **gpu}


def _demand(label: LabelConfig, capacity: Capacity) -> Demand:
    """The workers asked for, or a first one, and a CPU for the tasks that feed them."""
    number = 1 if label.max_workers else max(1, label.num_workers)
    device = "set label.use_gpu false" if label.use_gpu else "set cluster.num_cpus for a cluster of this machine"
    return Demand(
        "label.num_workers",
        f"{number} workers and what feeds them",
        (*[_worker(label, capacity)] * number, _FEED),
        f"use fewer workers, add machines, or {device}",
    )


def _workers_ever(label: LabelConfig, capacity: Capacity) -> int:
    """How many workers the cluster can grow to; 0 where nobody knows."""
    if capacity.node_types is None:
        return 0
    return placed_ever(replace(_demand(label, capacity), bundles=(_worker(label, capacity),) * _MOST_WORKERS), capacity)
