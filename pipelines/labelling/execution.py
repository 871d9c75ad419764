"""Chunks of a manifest through a pool of `LabelWorker` on Ray Data."""

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import UserError
from maskrcnn_core.inference.settings import PredictorSettings
from pipelines import storage
from pipelines.cluster.connection import TENSOR_MEMORY_ENVIRONMENT, nodes, unwrapped_errors
from pipelines.labelling.config import LabelRun
from pipelines.labelling.planning import WorkerPlan, largest_first, plan_workers
from pipelines.labelling.progress import Counts, LabelProgress, Poller, RemoteBoard, start_board
from pipelines.labelling.time_limits import stalled_seconds
from pipelines.labelling.worker import CONCURRENT_CALLS, LabelWorker, LoadPredictor, WorkerSettings
from pipelines.labels import run_folder
from pipelines.labels.chunks import Chunk, LabelFile, Tally

# Chunks that a worker holds: those it works on, and one more, so that it never waits for the driver. More of them would
# lie with a slow worker at the end, while others have nothing left to do.
_TASKS_IN_FLIGHT = CONCURRENT_CALLS + 1

# Ray Data lets a pool grow once its workers hold so many times the chunks that they can work on. That has to be less
# than what they hold at most, and is more by default.
_GROWS_FROM = 1.25


class DescribeCheckpoint(Protocol):
    """Signature of `maskrcnn_core.inference.predictor.describe_checkpoint`."""

    def __call__(self, checkpoint: str, settings: PredictorSettings) -> tuple[str, tuple[Category, ...]]:
        """Fingerprint and categories, without building the network."""
        ...


@dataclass(frozen=True)
class Detector:
    """How a checkpoint becomes a detector; both are passed on to other processes, so they must be picklable."""

    load: LoadPredictor
    describe: DescribeCheckpoint


def label_on_cluster(
    run: LabelRun,
    detector: Detector,
    settings: WorkerSettings,
    todo: Sequence[Chunk],
    before: Tally,
    images: int,
    on_progress: Callable[[LabelProgress], None] | None,
) -> tuple[Counts, dict[str, LabelFile]]:
    """Labels chunks; returns the counts of this start, and the chunks' files by name."""
    plan = plan_workers(run.label, nodes())
    per_node = plan.per_node if plan.most == plan.workers else 0  # a pool that grows fills whatever machines come
    settings = replace(settings, workers_per_node=per_node, cpus=plan.cpus, workers_per_gpu=run.label.workers_per_gpu)
    folder = run_folder.write_todo(run.output, largest_first(todo))
    board = start_board()
    report = None if on_progress is None else _reporter(on_progress, before, images)
    files: dict[str, LabelFile] = {}
    stalled = stalled_seconds(run.label, max(chunk.stop - chunk.start for chunk in todo))
    try:
        with _ray_data_settings(stalled), unwrapped_errors(), Poller(board, report) as poller:
            for row in _dataset(folder, plan, detector, settings, board).iter_rows():  # one for each chunk
                poller.check()
                result = pickle.loads(row["result"])  # of a process of this job
                if isinstance(result, UserError):
                    raise result
                files[row["name"]] = result
            return board.snapshot(), files
    except ExecutionTimeoutError as error:
        raise UserError(
            f"label.stalled_minutes: no label file was finished for {stalled / 60.0:g} minutes; look for workers that "
            "hang and machines that did not come back, and give the same command again: it goes on where it stopped"
        ) from error
    finally:
        storage.delete_folder(folder)


def _dataset(todo: str, plan: WorkerPlan, detector: Detector, settings: WorkerSettings, board: RemoteBoard) -> Any:
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
        .repartition(target_num_rows_per_block=1, strict=True)  # a task for each chunk
        .map_batches(
            LabelWorker,
            fn_constructor_kwargs={"load": detector.load, "settings": settings, "board": board},
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=plan.cpus,
            num_gpus=plan.gpus or None,
            runtime_env={"env_vars": TENSOR_MEMORY_ENVIRONMENT},
        )
    )


def _reporter(on_progress: Callable[[LabelProgress], None], before: Tally, images: int) -> Callable[[Counts], None]:
    def report(counts: Counts) -> None:
        done = min(images, before.images + counts.images)  # work that a lost process repeats is counted twice
        on_progress(
            LabelProgress(
                images=images,
                done=done,
                detections=before.detections + counts.detections,
                failed=before.failed + counts.failed,
                images_per_second=counts.images_per_second,
                waiting_share=counts.waiting_share,
                detections_per_second=counts.detections / counts.seconds if counts.seconds else 0.0,
            )
        )

    return report


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
        "max_consecutive_actor_init_deaths": 3,
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
