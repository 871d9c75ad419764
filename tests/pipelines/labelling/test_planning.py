"""How a labelling run fits a cluster."""

import pytest
from ray.data import DataContext

from maskrcnn_core.errors import ConfigError
from pipelines.cluster.connection import NodeCapacity
from pipelines.labelling import execution
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.planning import WorkerPlan, choose_chunks, in_tasks, largest_first, plan_workers
from pipelines.labelling.worker_settings import CONCURRENT_CALLS
from pipelines.labels.chunk_plan import ChunkPlan
from pipelines.labels.chunks import Chunk

# Ray warns about settings of its own that it sets itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize(
    ("images", "workers", "seconds", "settings", "expected"),
    [
        (1, 1, 1.0, {}, ChunkPlan(1)),
        (44, 1, 1.0, {}, ChunkPlan(8)),  # never below a group where there is a group for everyone
        (44, 8, 1.0, {}, ChunkPlan(6)),  # but every worker gets some
        (1000, 2, 1.0, {}, ChunkPlan(30, 8, 64)),  # half a minute each, and smaller at the end
        (1000, 2, 0.01, {}, ChunkPlan(63, 15, 120)),  # eight for each worker
        (1000, 2, 60.0, {}, ChunkPlan(8)),
        (10**6, 4, 1.0, {}, ChunkPlan(200, 50, 800)),  # not more files than somebody can look through
        (10**8, 4, 1.0, {}, ChunkPlan(250, 62, 992)),  # but their rows fit into memory
        (10**8, 200, 0.002, {"use_gpu": True}, ChunkPlan(4000, 1000, 800_000)),
        (100_000, 4, 1.0, {"rows_per_file": 5000}, ChunkPlan(5000)),
        (100, 1, 1.0, {"rows_per_file": 5}, ChunkPlan(5)),
        (4, 2, 1.0, {"rows_per_file": 5}, ChunkPlan(2)),
    ],
)
def test_chunks(images: int, workers: int, seconds: float, settings: dict, expected: ChunkPlan) -> None:
    assert choose_chunks(images, workers, 8, seconds, LabelConfig(**settings)) == expected


def test_what_is_left_of_each_part_comes_last() -> None:
    todo = [Chunk(0, 0, 100), Chunk(0, 100, 130), Chunk(1, 0, 100), Chunk(1, 100, 190), Chunk(2, 0, 1)]
    assert largest_first(todo) == [todo[0], todo[2], todo[3], todo[1], todo[4]]
    assert largest_first([]) == []


@pytest.mark.parametrize(
    ("chunks", "workers", "most_rows", "sizes"),
    [
        (0, 2, 100, []),
        (5, 2, 100, [1] * 5),
        (16, 2, 100, [1] * 16),
        (40, 2, 100, [1] * 40),  # 24 are no two for each of the last 16
        (48, 2, 100, [2] * 16 + [1] * 16),
        (48, 2, 15, [1] * 48),  # two would be more than a task may hold
        (10_000, 1, 30, [3] * 3330 + [2] + [1] * 8),
    ],
)
def test_tasks_of_several_chunks(chunks: int, workers: int, most_rows: int, sizes: list[int]) -> None:
    todo = [Chunk(0, 10 * index, 10 * index + 10) for index in range(chunks)]
    tasks = in_tasks(todo, workers, most_rows)
    assert [len(task) for task in tasks] == sizes
    assert [chunk for task in tasks for chunk in task] == todo


def test_a_pool_whose_workers_hold_all_that_they_may_grows() -> None:
    assert execution._GROWS_FROM <= execution._TASKS_IN_FLIGHT / CONCURRENT_CALLS
    with execution._ray_data_settings(5.0):
        context = DataContext.get_current()
        assert context.execution_no_progress_timeout_s == 5.0
        assert context.autoscaling_config.actor_pool_util_upscaling_threshold == execution._GROWS_FROM
    assert DataContext.get_current().execution_no_progress_timeout_s != 5.0


@pytest.mark.parametrize(
    ("nodes", "settings", "expected"),
    [
        ([(4, 0)], {}, WorkerPlan(1, 3, 0, 1, 1)),  # a laptop: one process
        ([(2, 0)], {}, WorkerPlan(1, 1, 0, 1, 1)),
        ([(64, 0)], {}, WorkerPlan(4, 15, 0, 4, 4)),  # 16 threads each
        ([(4, 0)], {"num_workers": 2}, WorkerPlan(2, 1, 0, 2, 2)),
        ([(4, 0), (4, 0), (0, 0)], {}, WorkerPlan(2, 3, 0, 1, 2)),  # a head without CPUs takes none
        ([(16, 4)], {"use_gpu": True}, WorkerPlan(4, 2, 1, 4, 4)),  # threads are counted on the machine
        ([(16, 4)], {"use_gpu": True, "num_workers": 1}, WorkerPlan(1, 2, 1, 1, 1)),
        ([(4, 4), (96, 4)], {"use_gpu": True}, WorkerPlan(8, 1, 1, 4, 8)),  # the smallest machine has room as well
        ([(16, 4)], {"use_gpu": True, "workers_per_gpu": 2}, WorkerPlan(8, 1, 0.5, 8, 8)),
        ([(16, 4)], {"use_gpu": True, "workers_per_gpu": 2, "num_workers": 5}, WorkerPlan(5, 1, 0.5, 5, 5)),
        ([(2, 0)], {"use_gpu": True, "workers_per_gpu": 4, "max_workers": 16}, WorkerPlan(1, 1, 0.25, 1, 16)),
        ([(8, 0)], {"threads_per_worker": 2}, WorkerPlan(3, 2, 0, 3, 3)),
        ([(4, 0), (32, 0)], {"threads_per_worker": 1}, WorkerPlan(33, 1, 0, 30, 33)),
        ([(2, 0), (8, 0)], {"threads_per_worker": 4}, WorkerPlan(7, 1, 0, 6, 7)),  # no larger than the smallest node
        ([(16, 4)], {"use_gpu": True, "max_workers": 16}, WorkerPlan(4, 2, 1, 4, 16)),  # a cluster that grows
        ([(96, 0)], {"max_workers": 99}, WorkerPlan(11, 8, 0, 11, 99)),  # smaller machines may come
        ([(96, 0)], {"max_workers": 99, "threads_per_worker": 4}, WorkerPlan(23, 4, 0, 23, 99)),
        ([(2, 0)], {"use_gpu": True, "max_workers": 16}, WorkerPlan(1, 1, 1, 1, 16)),  # from nothing
    ],
)
def test_plan_fits_the_cluster(nodes: list[tuple[int, int]], settings: dict, expected: WorkerPlan) -> None:
    plan = plan_workers(LabelConfig(**settings), [NodeCapacity(*node) for node in nodes])
    assert plan == expected
    assert plan.workers * plan.cpus < sum(cpus for cpus, _ in nodes)


@pytest.mark.parametrize(
    ("nodes", "settings", "message"),
    [
        ([(4, 0)], {"num_workers": 4}, r"need 5 CPUs .* has 4"),
        ([(1, 0)], {}, "CPUs"),
        ([(8, 0)], {"use_gpu": True}, "need a GPU each, the cluster has room for 0"),
        ([(8, 2)], {"use_gpu": True, "num_workers": 3}, "3 workers need a GPU each, the cluster has room for 2"),
        (
            [(8, 2)],
            {"use_gpu": True, "num_workers": 5, "workers_per_gpu": 2},
            "5 workers need 1/2 of a GPU each, the cluster has room for 4",
        ),
    ],
)
def test_what_cannot_fit_is_refused_before_ray_would_wait_for_ever(
    nodes: list[tuple[int, int]], settings: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_workers(LabelConfig(**settings), [NodeCapacity(*node) for node in nodes])


@pytest.mark.parametrize("number", [0, 65])
def test_workers_of_a_gpu_are_some(number: int) -> None:
    with pytest.raises(ConfigError, match=rf"label.workers_per_gpu: got {number}, expected 1 to 64"):
        LabelConfig(workers_per_gpu=number)


def test_workers_share_no_gpu_where_none_is_used() -> None:
    assert LabelConfig(workers_per_gpu=2).use_gpu == "auto"
    with pytest.raises(ConfigError, match=r"label.workers_per_gpu: got 2, expected 1 with label.use_gpu false"):
        LabelConfig(workers_per_gpu=2, use_gpu=False)
