"""Whether a job computes on GPUs: what `use_gpu` means on the connected cluster."""

import math
from typing import Literal

from pipelines.cluster.capacity import Capacity

UseGpu = bool | Literal["auto"]


def chooses_gpu(setting: UseGpu, capacity: Capacity) -> bool:
    """Whether workers get GPUs: as the setting says; with auto where the cluster has one, or can have."""
    return capacity.can_have_gpus if setting == "auto" else setting


def device_note(name: str, setting: UseGpu, capacity: Capacity) -> str | None:
    """What was chosen, or that GPUs are left idle; None where there is nothing to say.

    Args:
        name: of the setting.
        setting: as it was given.
        capacity: of the cluster.
    """
    if setting == "auto" and capacity.gpus:
        return f"computing on GPUs: the Ray cluster has {capacity.gpus} ({name} auto)"
    if setting == "auto" and capacity.can_have_gpus:
        return f"computing on GPUs: the Ray cluster can start machines with them ({name} auto)"
    if setting == "auto":
        return f"computing on CPUs: the Ray cluster has no GPU ({name} auto)"
    if not setting and capacity.gpus:
        return f"{_lie_idle(capacity.gpus)}: {name} is false"
    return None


def idle_note(name: str, workers: int, capacity: Capacity, *, per_gpu: int = 1) -> str | None:
    """That workers with GPUs leave others idle; None where they do not.

    Args:
        name: of the setting that says how many workers.
        workers: how many there are at most.
        capacity: of the cluster.
        per_gpu: how many of them share a GPU.
    """
    idle = capacity.gpus - math.ceil(workers / per_gpu)
    return None if idle <= 0 else f"{_lie_idle(idle)} of {capacity.gpus}: {name} is {workers}"


def _lie_idle(gpus: int) -> str:
    return f"{gpus} GPU{' lies' if gpus == 1 else 's lie'} idle"
