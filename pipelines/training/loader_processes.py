"""How many processes prepare the images of a training worker, where `data.workers` leaves it open."""

from typing import Literal

# On a GPU of these days the network takes in what 4 to 8 of them make; each holds some batches in shared memory.
_MOST = 12
# For the network's own process, whose threads start kernels and copy batches, and for whatever else runs there.
_LEFT_OUT = 2


def loader_processes(wanted: int | Literal["auto"], *, on_gpu: bool, cpus: int, workers_here: int) -> int:
    """Loader processes of one training worker; 0 = a thread of its own process.

    Args:
        wanted: `data.workers`.
        on_gpu: the network computes on a GPU; on a CPU it takes all cores itself.
        cpus: of this machine, as far as they may be used.
        workers_here: training workers that share them.
    """
    if wanted != "auto":
        return wanted
    return max(0, min(cpus // workers_here - _LEFT_OUT, _MOST)) if on_gpu else 0
