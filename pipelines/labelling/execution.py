"""Chunks of a manifest through a pool of `LabelWorker` on Ray Data."""

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from maskrcnn_core.errors import UserError
from pipelines import storage
from pipelines.cluster.computing_environment import computing_environment
from pipelines.cluster.connection import node_ids, nodes, unwrapped_errors
from pipelines.labelling.config import LabelRun
from pipelines.labelling.detector import Detector
from pipelines.labelling.device_faults import MOST_FAULTS
from pipelines.labelling.planning import WorkerPlan, in_tasks, largest_first, most_task_rows, plan_workers
from pipelines.labelling.progress import Counts, LabelProgress, Poller, reporter
from pipelines.labelling.ray_worker import RayWorker
from pipelines.labelling.remote_board import RemoteBoard, start_board
from pipelines.labelling.signs_of_life import longest_silence
from pipelines.labelling.silent_workers import SilentWorkers
from pipelines.labelling.time_limits import no_progress, stalled_seconds
from pipelines.labelling.worker_settings import CONCURRENT_CALLS, WorkerSettings
from pipelines.labels import run_folder
from pipelines.labels.chunks import Chunk, LabelFile, Tally

# Chunks that a worker holds: those it works on, and one more, so that it never waits for the driver. More of them would
# lie with a slow worker at the end, while others have nothing left to do.
_TASKS_IN_FLIGHT = CONCURRENT_CALLS + 1

# Ray Data lets a pool grow once its workers hold so many times the chunks that they can work on. That has to be less
# than what they hold at most, and is more by default.
_GROWS_FROM = 1.25

# Processes that die while they load, in a row: some devices may do that until they are given up.
_MOST_LOADING_DEATHS = 4 * MOST_FAULTS


def label_on_cluster(
    run: LabelRun,
    detector: Detector,
    settings: WorkerSettings,
    todo: Sequence[Chunk],
    before: Tally,
    images: int,
    on_progress: Callable[[LabelProgress], None] | None,
    worker: type = RayWorker,
    most_rows: int = 0,
) -> tuple[Counts, dict[str, LabelFile]]:
    """Labels chunks; returns the counts of this start, and the chunks' files by name.

    Args:
        run, detector, settings, todo, before, images, on_progress: see `backend.Backend.label_chunks`.
        worker: the actors, which are made and called as `RayWorker` is.
        most_rows: images of one task; 0 = `most_task_rows`.
    """
    plan = plan_workers(run.label, nodes())
    per_node = plan.per_node if plan.most == plan.workers else 0  # a pool that grows fills whatever machines come
    settings = replace(settings, workers_per_node=per_node, cpus=plan.cpus, workers_per_gpu=run.label.workers_per_gpu)
    board = start_board()
    report = None if on_progress is None else reporter(on_progress, before, images)
    files: dict[str, LabelFile] = {}
    left, most = largest_first(todo), most_rows or most_task_rows(run.label)
    stalled = stalled_seconds(run.label, max(chunk.stop - chunk.start for chunk in todo))
    try:
        with (
            _ray_data_settings(stalled),
            unwrapped_errors(),
            SilentWorkers(board, longest_silence(run.label)),
            Poller(board, report) as poller,
        ):
            without: list[str] = []
            while left:
                for name, file in _one_pass(worker, run, detector, settings, board, left, without, most):
                    poller.check()
                    files[name] = file
                left = [chunk for chunk in left if chunk.name not in files]
                without = board.next_pass()
            return board.snapshot(), files
    except ExecutionTimeoutError as error:
        raise no_progress(stalled) from error


def _one_pass(
    worker: type,
    run: LabelRun,
    detector: Detector,
    settings: WorkerSettings,
    board: RemoteBoard,
    todo: Sequence[Chunk],
    without: Sequence[str],
    most_rows: int,
) -> Iterator[tuple[str, LabelFile]]:
    """Labels chunks; those that a broken device was given may be left.

    Args:
        worker, run, detector, settings: as of `label_on_cluster`.
        board: of the run.
        todo: the chunks.
        without: ids of nodes that get no work, unless they are all that there is.
        most_rows: images of one task.
    """
    plan = plan_workers(run.label, nodes())
    tasks = in_tasks(todo, plan.most, most_rows)
    # More workers than tasks would load detectors for nothing, and Ray would warn of them.
    plan = replace(plan, workers=min(plan.workers, len(tasks)), most=min(plan.most, len(tasks)))
    folder = run_folder.write_todo(run.output, tasks)
    try:
        for row in _dataset(worker, folder, plan, detector, settings, board, without).iter_rows():  # one for each chunk
            result = pickle.loads(row["result"])  # of a process of this job
            if isinstance(result, UserError):
                raise result
            if result is not None:
                yield row["name"], result
    finally:
        storage.delete_folder(folder)


def _dataset(
    worker: type,
    todo: str,
    plan: WorkerPlan,
    detector: Detector,
    settings: WorkerSettings,
    board: RemoteBoard,
    without: Sequence[str],
) -> Any:
    others = len(node_ids()) > len(without)
    selector = {"ray.io/node-id": f"!in({','.join(without)})"} if without and others else None
    filesystem, path = storage.filesystem_and_path(todo)
    size = {"size": plan.workers} if plan.most == plan.workers else {"min_size": plan.workers, "max_size": plan.most}
    pool = ray.data.ActorPoolStrategy(
        **size,
        max_concurrent_calls_per_actor=CONCURRENT_CALLS,
        max_tasks_in_flight_per_actor=_TASKS_IN_FLIGHT,
        enable_true_multi_threading=True,
    )
    return (
        ray.data.read_parquet(path, filesystem=filesystem)
        .repartition(target_num_rows_per_block=1, strict=True)  # a call for each task
        .map_batches(
            worker,
            fn_constructor_kwargs={"load": detector.load, "settings": settings, "board": board},
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=plan.cpus,
            num_gpus=plan.gpus or None,
            **({"label_selector": selector} if selector else {}),
            runtime_env={"env_vars": computing_environment()},
        )
    )


@contextmanager
def _ray_data_settings(stalled: float) -> Iterator[None]:
    """Ray Data's process-wide settings for a labelling run; the former ones come back.

    Args:
        stalled: seconds without a finished chunk after which a run counts as stuck.
    """
    context = ray.data.DataContext.get_current()
    wanted = {
        "enable_progress_bars": False,
        # The second generation of readers takes seconds longer to start and gains nothing on a list of uris.
        "use_datasource_v2": False,
        "max_errored_blocks": 0,
        # A process that dies while it loads the network is started again, but not for ever.
        "max_consecutive_actor_init_deaths": _MOST_LOADING_DEATHS,
        "execution_no_progress_timeout_s": stalled,
        "autoscaling_config": replace(context.autoscaling_config, actor_pool_util_upscaling_threshold=_GROWS_FROM),
    }
    former = {name: getattr(context, name) for name in wanted}
    logger = logging.getLogger("ray.data")
    level = logger.level
    for name, value in wanted.items():
        setattr(context, name, value)
    logger.setLevel(logging.CRITICAL)  # errors arrive as exceptions
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in former.items():
            setattr(context, name, value)
