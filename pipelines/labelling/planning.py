"""How a labelling run fits a cluster: how many workers of what size, and how many images a chunk has."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskrcnn_core.errors import ConfigError
from pipelines.labelling.config import LabelConfig
from pipelines.labels.chunk_plan import ChunkPlan
from pipelines.labels.chunks import Chunk

if TYPE_CHECKING:
    from pipelines.cluster.connection import NodeCapacity  # which imports Ray

# One process with all cores of a small machine is the fastest; beyond this many threads the convolutions of a small
# batch stop gaining, and a second process does.
MOST_THREADS = 16

# A GPU is what a worker needs; its CPUs are counted small, so that machines of any shape have room for it. How many
# threads it has is decided on its machine.
_MOST_CPUS_WITH_GPU = 2

# Machines that come later may be smaller than those that are there.
_MOST_CPUS_GROWING = 8

# A chunk is so many seconds of a worker's work, which is also what a lost worker has to do again; it is a task of Ray's
# and a file besides, so that there are no more of them than somebody can look through, and its rows fit into memory.
_CHUNK_SECONDS = 30.0
_MOST_FILES = 5000
_MOST_ROWS_CPU = 250
_MOST_ROWS_GPU = 4000

# A task of Ray's costs the driver some milliseconds: where there are many chunks a task holds several, but for the last
# ones of each worker.
_CHUNKS_OF_TASK_GPU = 4
_LAST_ALONE = 8

# Chunks that each worker gets at least, and small ones at the end, each a quarter as large.
_TASKS_PER_WORKER = 8
_SMALL_PER_WORKER = 4
_SMALL_SHARE = 4


@dataclass(frozen=True)
class WorkerPlan:
    """A pool that fits the cluster.

    Attributes:
        workers: number of processes.
        cpus: logical CPUs that each one holds.
        gpus: share of a GPU that each one holds.
        per_node: most workers on one node.
        most: processes that the pool may grow to.
    """

    workers: int
    cpus: int
    gpus: float
    per_node: int
    most: int


def plan_workers(label: LabelConfig, cluster: "Sequence[NodeCapacity]") -> WorkerPlan:
    """How many workers of what size the cluster can hold, with a CPU left for the tasks that feed them.

    Args:
        label: with `use_gpu` chosen (auto counts as false); `num_workers` and `threads_per_worker` 0 = chosen here;
            with `max_workers` a cluster that grows by itself may hold none yet.
        cluster: nodes with their logical resources.

    Raises:
        ConfigError: too few CPUs or GPUs; says how many there are.
    """
    gpus = 1.0 / label.workers_per_gpu if label.use_gpu is True else 0.0
    if gpus:
        hosts = [node for node in cluster if node.gpus > 0 and node.cpus > 0]
        per_node = max((node.gpus for node in hosts), default=0) * label.workers_per_gpu
        room = sum(node.gpus for node in hosts) * label.workers_per_gpu
        share = min((max(1, (node.cpus - 1) // (node.gpus * label.workers_per_gpu)) for node in hosts), default=1)
    else:
        hosts = [node for node in cluster if node.cpus > 0]
        per_node, room, share = _cpu_shares(label, hosts)
    if label.max_workers and room == 0:
        return WorkerPlan(1, first_cpus(label), gpus, 1, label.max_workers)
    workers = label.num_workers or min(room, label.max_workers or room)
    cpus = min(share, label.threads_per_worker or (_MOST_CPUS_WITH_GPU if gpus else share))
    total = sum(node.cpus for node in cluster)
    if gpus and (workers > room or workers == 0):
        each = "a GPU each" if label.workers_per_gpu == 1 else f"1/{label.workers_per_gpu} of a GPU each"
        raise ConfigError(
            f"label.use_gpu: {workers or 'at least 1'} workers need {each}, the cluster has room for {room}; add "
            "machines, or set label.max_workers where the cluster grows by itself"
        )
    if workers == 0 or workers * cpus > total - 1:
        raise ConfigError(
            f"label.num_workers: {max(1, workers)} workers need {max(1, workers) * cpus + 1} CPUs "
            f"({cpus} each and 1 to feed them), "
            f"the cluster has {total}; use fewer workers, or more CPUs (cluster.num_cpus for a cluster of this machine)"
        )
    most = max(workers, label.max_workers)
    return WorkerPlan(workers, cpus, gpus, max(1, min(per_node, workers)), most)


def first_cpus(label: LabelConfig, machines: Iterable[float] = ()) -> int:
    """Logical CPUs of a worker where none fits yet.

    Args:
        label: with `use_gpu` chosen.
        machines: CPUs of each kind that may come; without any, the least is asked for, which fits everywhere.
    """
    if label.threads_per_worker or label.use_gpu is True:
        return label.threads_per_worker or 1
    return min(_MOST_CPUS_GROWING, min((_beside_tasks(int(cpus)) for cpus in machines if cpus >= 1), default=1))


def _cpu_shares(label: LabelConfig, hosts: "Sequence[NodeCapacity]") -> tuple[int, int, int]:
    """Most workers on a node, workers in all, and logical CPUs of each."""
    if not hosts:
        return 0, 0, 1
    wanted = label.num_workers
    if label.threads_per_worker and not wanted:  # as many workers of this size as fit
        share = min(label.threads_per_worker, min(_beside_tasks(node.cpus) for node in hosts))
        rooms = [_beside_tasks(node.cpus) // share for node in hosts]
        return max(rooms), sum(rooms), share
    per_node = math.ceil(wanted / len(hosts)) if wanted else max(1, hosts[0].cpus // MOST_THREADS)
    share = max(1, min(_beside_tasks(node.cpus) for node in hosts) // per_node)
    if label.max_workers and share > _MOST_CPUS_GROWING:
        share, per_node = _MOST_CPUS_GROWING, hosts[0].cpus // _MOST_CPUS_GROWING
    room = sum(max(1, (node.cpus - 1) // share) if node.cpus > 1 else 0 for node in hosts)
    return per_node, min(room, per_node * len(hosts)), share


def _beside_tasks(cpus: int) -> int:
    """CPUs of a node for workers: a quarter of it, at most two CPUs, stays free for reading and writing tasks."""
    return max(1, cpus - min(2, max(1, cpus // 4)))


def most_chunk_rows(label: LabelConfig) -> int:
    """Images of a chunk where nothing is set; `use_gpu` is chosen."""
    return _MOST_ROWS_GPU if label.use_gpu is True else _MOST_ROWS_CPU


def choose_chunks(images: int, workers: int, group_size: int, seconds_of_image: float, label: LabelConfig) -> ChunkPlan:
    """Chunks of some seconds of work: few enough images to keep all workers busy to the end and to lose little with
    one, many enough for files of a useful size; smaller at the end.

    Args:
        images: of the run.
        workers: that label them.
        group_size: images that a worker reports at once.
        seconds_of_image: that a worker needs for an image, roughly.
        label: as set, with `use_gpu` chosen.
    """
    if label.rows_per_file:
        return ChunkPlan(min(label.rows_per_file, max(1, math.ceil(images / workers))))
    timely = math.ceil(_CHUNK_SECONDS / seconds_of_image)
    rows = max(min(timely, math.ceil(images / (workers * _TASKS_PER_WORKER))), math.ceil(images / _MOST_FILES))
    least = min(group_size, math.ceil(images / workers))
    rows = min(max(rows, least), most_chunk_rows(label))
    small = max(least, rows // _SMALL_SHARE)
    return ChunkPlan(rows, small, small * workers * _SMALL_PER_WORKER) if small < rows else ChunkPlan(rows)


def largest_first(todo: Iterable[Chunk]) -> list[Chunk]:
    """Chunks in the order in which workers get them: what is left of each part of the manifest comes last, so that at
    the end no worker has much to do while others have nothing."""
    return sorted(todo, key=lambda chunk: (chunk.start - chunk.stop, chunk))


def most_task_rows(label: LabelConfig) -> int:
    """Images of the chunks of one task together; `use_gpu` is chosen."""
    return most_chunk_rows(label) * (_CHUNKS_OF_TASK_GPU if label.use_gpu is True else 1)


def in_tasks(todo: Sequence[Chunk], workers: int, most_rows: int) -> list[list[Chunk]]:
    """Chunks in tasks, in their order: several in one as long as each worker still gets as many tasks alone.

    Args:
        todo: largest first.
        workers: that get them.
        most_rows: images of the chunks of one task together.
    """
    alone = min(len(todo), _LAST_ALONE * workers)
    together = len(todo) - alone
    each = 1
    if together:
        each = max(1, min(most_rows // (todo[0].stop - todo[0].start), together // alone))
    starts = [*range(0, together, each), *range(together, len(todo))]
    return [list(todo[start:stop]) for start, stop in itertools.pairwise([*starts, len(todo)])]
