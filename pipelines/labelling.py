"""Label an image collection with Ray Data: exactly one Parquet row per image, resumable at any moment.

    todo manifest -> repartition -> pool of LabelWorker (uris in, label rows out) -> write files -> counts

Only uris and label rows pass through Ray; image bytes are read next to the network.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import ray
import ray.data

from maskrcnn_core.config import Category
from maskrcnn_core.errors import ConfigError, StorageError
from maskrcnn_core.inference.settings import PredictorSettings, deciding_settings
from maskrcnn_core.label_config import LabelConfig, LabelRun
from pipelines import label_output, storage
from pipelines.cluster import TENSOR_MEMORY_ENVIRONMENT, NodeCapacity, connect, nodes, unwrapped_errors
from pipelines.label_output import FailedImage, RunIdentity, Tally
from pipelines.label_progress import Counts, LabelProgress, Poller, RemoteBoard, start_board
from pipelines.label_worker import CONCURRENT_CALLS, LabelWorker, LoadPredictor, WorkerSettings
from pipelines.manifest import Manifest, build_manifest
from pipelines.proposal_files import open_proposals

# One process with all cores of a small machine is the fastest; beyond this many threads the convolutions of a small
# batch stop gaining, and a second process does.
_MOST_THREADS = 16

# Images given to the detector at once: enough for it to fill batches by pixels, few enough that progress shows.
_GROUP_SIZE_CPU = 8
_GROUP_SIZE_GPU = 32

# Images of one Ray task: small enough to balance the workers, large enough that Ray's own work does not show.
_MOST_ROWS_PER_TASK = 64
_TASKS_PER_WORKER = 8

# A crash costs what is not written yet: small runs write at least this many files.
_LEAST_FILES = 20


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


@dataclass(frozen=True)
class WorkerPlan:
    """A pool that fits the cluster.

    Attributes:
        workers: number of processes.
        cpus, gpus: logical resources that each one holds.
        per_node: most workers on one node.
    """

    workers: int
    cpus: int
    gpus: int
    per_node: int


@dataclass(frozen=True)
class LabelSummary:
    """What a labelling run came to.

    Attributes:
        images: of the run; every one has exactly one row.
        statuses: number of images by record status.
        detections: objects in all labels.
        failed: images whose status is not ok.
        failures: the first of them.
        labelled_now: images labelled by this call; the others were done before.
        seconds: of this call.
        images_per_second: of this call without start-up; 0 where nothing was left to do.
        labels: folder of the label files.
        skipped_because_done: the run had been finished before; nothing was done.
    """

    images: int
    statuses: dict[str, int]
    detections: int
    failed: int
    failures: tuple[FailedImage, ...]
    labelled_now: int
    seconds: float
    images_per_second: float
    labels: str
    skipped_because_done: bool


def label(
    run: LabelRun,
    on_progress: Callable[[LabelProgress], None] | None = None,
    *,
    detector: Detector | None = None,
) -> LabelSummary:
    """Detect the objects of every image and write one row for each to OUTPUT/labels.

    The same call again continues a run that was interrupted, and does nothing for one that is finished.

    Args:
        run: what to label, with what, where to.
        on_progress: called about once a second while images are labelled, from another thread.
        detector: None = the checkpoints of this project.

    Raises:
        ConfigError: the cluster cannot hold the workers asked for, or the model cannot do what is asked of it.
        CheckpointError: the checkpoint cannot be used.
        StorageError: there are no images, the output holds another run, or an image has no proposals.
        AnnotationError: the COCO json or manifest is malformed.
    """
    started = time.monotonic()
    detector = detector or _own_detector()
    manifest = build_manifest(run.images, run.image_root)
    settings = _worker_settings(run, manifest, _check_proposals(run, manifest))
    identity = _identity(run, manifest, settings, detector)
    state = label_output.claim(run.output, identity)
    if state == "finished":
        tally = label_output.finished_tally(run.output)
        return _summary(run.output, tally, tally.images, Counts(), started, finished_before=True)
    if state == "new":
        label_output.open_run(run.output, identity, manifest)
    done, before = label_output.read_labelled(run.output)
    todo, todo_rows = label_output.write_todo(run.output, manifest, done)
    counts = Counts()
    if todo_rows:
        with connect(run.cluster):
            counts = _label_rest(run, detector, settings, todo, todo_rows, before, on_progress)
    tally = _checked_tally(run.output, manifest)
    label_output.close_run(run.output, tally)
    return _summary(run.output, tally, before.images, counts, started, finished_before=False)


def plan_workers(label: LabelConfig, cluster: Sequence[NodeCapacity]) -> WorkerPlan:
    """How many workers of what size the cluster can hold, with a CPU left for the tasks that feed them.

    Args:
        label: `num_workers` and `threads_per_worker` 0 = chosen here.
        cluster: nodes with their logical resources.

    Raises:
        ConfigError: too few CPUs or GPUs; says how many there are.
    """
    if label.use_gpu:
        hosts = [node for node in cluster if node.gpus > 0 and node.cpus > 0]
        per_node = max((node.gpus for node in hosts), default=0)
        room = sum(node.gpus for node in hosts)
        share = min((max(1, (node.cpus - 1) // node.gpus) for node in hosts), default=1)
    else:
        hosts = [node for node in cluster if node.cpus > 0]
        per_node, room, share = _cpu_shares(label, hosts)
    workers = label.num_workers or room
    cpus = min(share, label.threads_per_worker) if label.threads_per_worker else share
    total = sum(node.cpus for node in cluster)
    if label.use_gpu and (workers > room or workers == 0):
        raise ConfigError(f"label.use_gpu: {workers or 'at least 1'} workers need a GPU each, the cluster has {room}")
    if workers == 0 or workers * cpus > total - 1:
        raise ConfigError(
            f"label.num_workers: {max(1, workers)} workers need {max(1, workers) * cpus + 1} CPUs "
            f"({cpus} each and 1 to feed them), "
            f"the cluster has {total}; use fewer workers, or more CPUs (cluster.num_cpus for a cluster of this machine)"
        )
    return WorkerPlan(workers, cpus, int(label.use_gpu), max(1, min(per_node, workers)))


def _cpu_shares(label: LabelConfig, hosts: Sequence[NodeCapacity]) -> tuple[int, int, int]:
    """Most workers on a node, workers in all, and logical CPUs of each."""
    if not hosts:
        return 0, 0, 1
    if label.num_workers:
        per_node = math.ceil(label.num_workers / len(hosts))
    else:
        per_node = max(1, hosts[0].cpus // _MOST_THREADS)
    # A quarter of a node, at most two CPUs, stays free for reading and writing tasks.
    smallest = min(max(1, node.cpus - min(2, max(1, node.cpus // 4))) for node in hosts)
    share = max(1, smallest // per_node)
    room = sum(max(1, (node.cpus - 1) // share) if node.cpus > 1 else 0 for node in hosts)
    return per_node, min(room, per_node * len(hosts)), share


def _own_detector() -> Detector:
    # Imported here: validating a command line needs no network code.
    from maskrcnn_core.inference.predictor import describe_checkpoint, load_predictor

    return Detector(load_predictor, describe_checkpoint)


def _check_proposals(run: LabelRun, manifest: Manifest) -> str:
    """Fingerprint of the proposals of the run, after making sure that every image has some; empty where none are given.

    Raises:
        StorageError: they cannot be read, or lack an image.
    """
    if not run.proposals:
        return ""
    proposals = open_proposals(run.proposals, "proposals")
    proposals.require(manifest.table.column("image_id").to_pylist(), allow_failed=True)
    return proposals.fingerprint


def _worker_settings(run: LabelRun, manifest: Manifest, proposals: str) -> WorkerSettings:
    config = run.label
    apply_exif = manifest.source != "coco" if config.exif_orientation == "auto" else config.exif_orientation == "apply"
    return WorkerSettings(
        checkpoint=_absolute(run.checkpoint),
        predictor=PredictorSettings(
            device="cuda" if config.use_gpu else "cpu",
            precision=config.precision,
            batch_pixels=config.batch_pixels,
            max_pixels=config.max_pixels,
            apply_exif=apply_exif,
            min_score=config.min_score,
            max_detections=config.max_detections,
            test_short_sides=config.test_short_sides,
            test_flip=config.test_flip,
            record=config.record,
            proposals=proposals,
        ),
        proposals=_absolute(run.proposals) if run.proposals else "",
        threads=config.threads_per_worker,
        group_size=_GROUP_SIZE_GPU if config.use_gpu else _GROUP_SIZE_CPU,
    )


def _absolute(uri: str) -> str:
    """Ray's workers have working directories of their own."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def _identity(run: LabelRun, manifest: Manifest, settings: WorkerSettings, detector: Detector) -> RunIdentity:
    fingerprint, _ = detector.describe(settings.checkpoint, settings.predictor)
    readable = deciding_settings(settings.predictor) | {"number of images": len(manifest)}
    return RunIdentity(fingerprint, manifest.digest, readable)


def _label_rest(
    run: LabelRun,
    detector: Detector,
    settings: WorkerSettings,
    todo: str,
    todo_rows: int,
    before: Tally,
    on_progress: Callable[[LabelProgress], None] | None,
) -> Counts:
    """Labels the images of the folder `todo`; returns the counts of this start."""
    plan = plan_workers(run.label, nodes())
    settings = replace(settings, workers_per_node=plan.per_node)
    board = start_board()
    report = None if on_progress is None else _reporter(on_progress, before, before.images + todo_rows)
    with _ray_data_settings(), unwrapped_errors(), Poller(board, report) as poller:
        sizes = chunk_sizes(todo_rows, plan.workers, settings.group_size, run.label.rows_per_file)
        dataset = _dataset(todo, sizes, plan, detector, settings, board, run.output)
        for _ in dataset.iter_rows():  # one for each file written
            poller.check()
        return board.snapshot()


def _dataset(
    todo: str,
    sizes: tuple[int, int],
    plan: WorkerPlan,
    detector: Detector,
    settings: WorkerSettings,
    board: RemoteBoard,
    output: str,
) -> Any:
    rows_per_task, rows_per_file = sizes
    filesystem, path = storage.filesystem_and_path(todo)
    pool = ray.data.ActorPoolStrategy(
        size=plan.workers, max_concurrent_calls_per_actor=CONCURRENT_CALLS, enable_true_multi_threading=True
    )
    labelled = (
        ray.data.read_parquet(path, filesystem=filesystem)
        .repartition(target_num_rows_per_block=rows_per_task, strict=True)
        .map_batches(
            LabelWorker,
            fn_constructor_kwargs={"load": detector.load, "settings": settings, "board": board},
            batch_size=rows_per_task,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=plan.cpus,
            num_gpus=plan.gpus or None,
            runtime_env={"env_vars": TENSOR_MEMORY_ENVIRONMENT},
        )
    )
    write: Any = label_output.write_batch  # Ray's types know no arguments beyond the batch
    return labelled.map_batches(
        write, fn_kwargs={"output": output}, batch_size=rows_per_file, batch_format="pyarrow", num_cpus=1
    )


def chunk_sizes(images: int, workers: int, group_size: int, rows_per_file: int) -> tuple[int, int]:
    """Images of one Ray task and of one file; the second is a multiple of the first.

    Tasks are small enough to keep all workers busy to the end; files of a small run are small enough that a crash
    loses little of it.
    """
    balanced = math.ceil(images / (workers * _TASKS_PER_WORKER))
    least = min(group_size, math.ceil(images / workers))
    task = min(max(balanced, least), _MOST_ROWS_PER_TASK, rows_per_file)
    wanted = min(rows_per_file, max(math.ceil(images / _LEAST_FILES), task))
    return task, task * (wanted // task)


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
            )
        )

    return report


@contextmanager
def _ray_data_settings() -> Iterator[None]:
    """Ray Data's process-wide settings for a labelling run; the former ones come back."""
    context = ray.data.DataContext.get_current()
    wanted = {
        "enable_progress_bars": False,
        # The second generation of readers takes seconds longer to start and gains nothing on a list of uris.
        "use_datasource_v2": False,
        "max_errored_blocks": 0,
        # A process that dies while it loads the network is started again, but not for ever.
        "max_consecutive_actor_init_deaths": 3,
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


def _checked_tally(output: str, manifest: Manifest) -> Tally:
    """Counts over all rows, after making sure that each image has exactly one.

    Raises:
        StorageError: it has not; two runs wrote to the same folder at once, or files were changed.
    """
    ids, tally = label_output.read_labelled(output)
    expected = np.sort(manifest.table.column("image_id").to_numpy())
    if not np.array_equal(ids, expected):
        missing = len(np.setdiff1d(expected, ids))
        surplus = len(ids) - (len(expected) - missing)
        raise StorageError(
            f"output: {output!r} has {missing} images without a row and {surplus} rows too many; was another process "
            "writing there at the same time? Repeat the command for missing rows; for surplus ones delete the folder"
        )
    return tally


def _summary(
    output: str, tally: Tally, images_before: int, counts: Counts, started: float, *, finished_before: bool
) -> LabelSummary:
    return LabelSummary(
        images=tally.images,
        statuses=dict(tally.statuses),
        detections=tally.detections,
        failed=tally.failed,
        failures=tally.failures,
        labelled_now=tally.images - images_before,
        seconds=time.monotonic() - started,
        images_per_second=counts.images_per_second,
        labels=label_output.labels_folder(output),
        skipped_because_done=finished_before,
    )
