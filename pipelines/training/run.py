"""Train a detector on COCO-format data with Ray Train: one function, `train`.

Everything that a user can get wrong is checked here before the folder of the run is claimed, and what can be, before
Ray starts. The same command again resumes a run that was cut off, from its last checkpoint, with the numbers of an
unbroken one; a finished run is left alone, unless `train.steps` has grown.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from maskrcnn_core.errors import UserError
from maskrcnn_core.weights.initial import check_initial
from pipelines import storage
from pipelines.annotations.columns import content_digest, needs_tasks
from pipelines.cluster import connection
from pipelines.cluster.autoscaler import read_capacity
from pipelines.cluster.capacity import Demand
from pipelines.cluster.computing_environment import computing_environment
from pipelines.cluster.waiting import wait_for_machines
from pipelines.storage.s3_settings import applied, settings_environment
from pipelines.training.bad_images import BadImages, read_bad_images, write_bad_images
from pipelines.training.batch_size import find_batch_size
from pipelines.training.config import TrainRun
from pipelines.training.curves import CurveKeeper, picture_uri
from pipelines.training.data_checks import check_data, check_run_images
from pipelines.training.data_config import DataConfig, DatasetConfig
from pipelines.training.data_summary import summarize, write_data_summary
from pipelines.training.datasets import publish_data
from pipelines.training.events import ClusterNote, DataNote, SchedulePlanned, TrainingEvent, WaitingForMachines
from pipelines.training.machines import WAIT_SETTING, MachineWatch, on_chosen_devices, training_demand, worker_resources
from pipelines.training.output import (
    checkpoint_uri,
    claim,
    initial_checkpoints,
    is_claimed,
    read_summary,
    release,
    require_free,
    take_over,
    with_batch_size_of_run,
    write_summary,
)
from pipelines.training.progress_log import forwarded, start_progress_log
from pipelines.training.proposals import proposals_of
from pipelines.training.ray_reports import named_callbacks
from pipelines.training.schedule import images_per_epoch, require_end_of_warmup, schedule_in_steps, schedule_remarks
from pipelines.training.supervision import Notices, result_of
from pipelines.training.trackers.availability import check_trackers
from pipelines.training.worker import WorkerConfig, WorkerResult, train_worker

_RAY_RUN_NAME = "_ray"


@dataclass(frozen=True)
class TrainSummary:
    """What a run has made.

    Attributes:
        checkpoint: the folder to use: the best by validation AP, or the last where nothing was validated.
        last: folder of the last step.
        steps: optimisation steps of the whole run.
        images: images that these steps took.
        images_per_second: over the training time of the whole run (validation and checkpoints excluded).
        seconds: that time.
        best_score: best validation AP (of masks; of boxes without a mask head), 0 to 1; None without one.
        best_step: steps done when it was measured.
        resumed_from: step of the checkpoint that the workers last started from, 0 without one; equal to `steps` where
            the run was already finished.
        notes: what a person should know of the annotations, a line each.
        curves: picture of losses, scores and learning rate over the steps; None of a run of an earlier release.
        bad_images: how many could not be used and were replaced (OUTPUT/bad_images.jsonl).
    """

    checkpoint: str
    last: str
    steps: int
    images: int
    images_per_second: float
    seconds: float
    best_score: float | None
    best_step: int | None
    resumed_from: int
    notes: tuple[str, ...] = ()
    curves: str | None = None
    bad_images: int = 0


def train(run: TrainRun, on_progress: Callable[[TrainingEvent], None] | None = None) -> TrainSummary:
    """Train, or resume, or return what a finished run has made.

    Args:
        run: configuration; the model's categories come from the training annotations.
        on_progress: called with events while the run goes on, from a background thread.

    Raises:
        UserError: settings, data or output are not usable (before anything starts), or an image or annotation turned
            out to be while training.
            Lost more often than `train.max_failures`, workers are such a mistake too.
        KeyboardInterrupt: the run was interrupted; its text says where the same call goes on.
        ray.train.TrainingFailedError: a bug.
    """
    run = _with_absolute_paths(run)
    with applied(run.storage), contextlib.ExitStack() as stack:
        require_free(run.output)
        environment = check_trackers(run)
        if any(needs_tasks(paths.annotations) for paths in (run.data.train, run.data.val)):
            # Their tasks read them.
            stack.enter_context(connection.connect(run.cluster, environment=settings_environment(run.storage)))
        return _train(run, environment, on_progress)


def _train(
    run: TrainRun, environment: Mapping[str, str], on_progress: Callable[[TrainingEvent], None] | None
) -> TrainSummary:
    data = check_data(run)
    run = replace(run, model=replace(run.model, categories=data["data.train"].dataset.categories))
    epoch_images = images_per_epoch(data["data.train"].dataset, run.train.repeat_threshold)
    content = _digests(run)
    tell = on_progress or (lambda _: None)
    if is_claimed(run.output):
        run = replace(run, train=schedule_in_steps(with_batch_size_of_run(run), epoch_images))
        claim(run, content)
        if (finished := read_summary(run.output)) is not None:
            notes = tuple(finished.get("notes", ()))
            return TrainSummary(**{**finished, "resumed_from": finished["steps"], "notes": notes})
    else:  # a run that goes on has been looked at, and no longer needs what it started from
        run = _scheduled_new(run, epoch_images)
        check_run_images(run, data)
        if run.init:
            check_initial(run.model, initial_checkpoints(run.init))
    notes = tuple(note for one in data.values() for note in one.notes)
    described = {name: summarize(one.dataset) for name, one in data.items()}
    if run.train.batch_size != "auto":
        tell(_plan(run, epoch_images))
    with connection.connect(run.cluster, environment=settings_environment(run.storage)):
        fitted = _with_machines(run, tell)
        if run.train.batch_size == "auto":
            fitted = _with_found_batch(fitted, epoch_images, tell)
            run = replace(run, train=replace(fitted.train, use_gpu=run.train.use_gpu))
        for note in notes:
            tell(DataNote(note))
        is_new = claim(run, content)
        owner = take_over(run.output)
        with _released_after_a_mistake(run.output, owner) if is_new else contextlib.nullcontext():
            if is_new:
                write_data_summary(run.output, described)
            publish_data(run, data.values())
            result = _fit(fitted, owner, environment, _plan(run, epoch_images), tell)
    summary = replace(_summary(run, result), notes=notes, bad_images=len(read_bad_images(run.output)))
    write_summary(run.output, asdict(summary))
    return summary


def _scheduled_new(run: TrainRun, epoch_images: float) -> TrainRun:
    """A new run with its schedule in steps, as soon as its batch size is known."""
    if run.train.batch_size == "auto":
        return run
    settings = schedule_in_steps(run.train, epoch_images)
    require_end_of_warmup(settings)
    return replace(run, train=settings)


def _with_found_batch(run: TrainRun, epoch_images: float, tell: Callable[[TrainingEvent], None]) -> TrainRun:
    """A new run with the largest batch that fits, and the schedule that follows from it; tells both."""
    number, note = find_batch_size(run, epoch_images)
    tell(DataNote(note))
    run = _scheduled_new(replace(run, train=replace(run.train, batch_size=number)), epoch_images)
    tell(_plan(run, epoch_images))
    return run


def _plan(run: TrainRun, epoch_images: float) -> SchedulePlanned:
    settings = run.train
    return SchedulePlanned(settings.steps, settings.images_per_step, epoch_images, schedule_remarks(settings))


@contextlib.contextmanager
def _released_after_a_mistake(output: str, owner: str) -> Iterator[None]:
    """A folder that was new is as new after a mistake that was found before anything was learnt."""
    try:
        yield
    except UserError:
        release(output, owner)
        raise


def _digests(run: TrainRun) -> dict[str, str]:
    """What the annotation and proposal files hold, by the names of their settings: they may move."""
    digests = {}
    for name, paths in (("data.train", run.data.train), ("data.val", run.data.val)):
        if paths.annotations:
            digests[f"{name}.annotations"] = content_digest(paths.annotations)
        if (proposals := proposals_of(paths, name)) is not None:
            digests[f"{name}.proposals"] = str(proposals.fingerprint)
    return digests


def _with_absolute_paths(run: TrainRun) -> TrainRun:
    """Ray's workers have working directories of their own."""

    def absolute(paths: DatasetConfig) -> DatasetConfig:
        return DatasetConfig(
            images=storage.absolute_or_empty(paths.images),
            annotations=storage.absolute_or_empty(paths.annotations),
            proposals=storage.absolute_or_empty(paths.proposals),
        )

    data: DataConfig = replace(run.data, train=absolute(run.data.train), val=absolute(run.data.val))
    init = ",".join(map(storage.absolute_or_empty, initial_checkpoints(run.init))) if run.init else None
    return replace(run, output=storage.absolute_or_empty(run.output), data=data, init=init)


def _with_machines(run: TrainRun, tell: Callable[[TrainingEvent], None]) -> TrainRun:
    """The run with its devices chosen, once the cluster has room for it.

    Raises:
        ConfigError: it never has, or not in time.
    """
    run = on_chosen_devices(run, read_capacity(), lambda text: tell(ClusterNote(text)))
    wait_for_machines(_demand(run), WAIT_SETTING, run.train.wait_minutes, lambda text: tell(WaitingForMachines(text)))
    return run


def _demand(run: TrainRun) -> Demand:
    return training_demand(run, _cpus(run), _actors(run))


def _cpus(run: TrainRun) -> int:
    """Of a training worker, with the loader processes that it was given; those that it chooses itself take what CPUs
    its machine has, be they few."""
    loaders = run.data.workers if run.data.reader == "local" and run.data.workers != "auto" else 0
    return max(1, min(run.train.threads_per_worker, os.cpu_count() or 1)) + loaders


def _actors(run: TrainRun) -> int:
    """Readers of a training worker."""
    return run.data.workers if run.data.reader == "ray" and run.data.workers != "auto" else 0


def _fit(
    run: TrainRun,
    owner: str,
    environment: Mapping[str, str],
    plan: SchedulePlanned,
    tell: Callable[[TrainingEvent], None],
) -> WorkerResult:
    known = BadImages(run.data.max_bad_fraction, read_bad_images(run.output))
    progress = start_progress_log(60.0 * run.train.checkpoint_minutes, known)
    curves = CurveKeeper(run.output, plan, tell)

    def forward(event: TrainingEvent) -> None:
        tell(event)
        curves.add(event)

    filesystem, path = (None, run.output) if storage.is_local(run.output) else storage.filesystem_and_path(run.output)
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"worker": WorkerConfig(run, progress, owner, environment)},
        torch_config=ray.train.torch.TorchConfig(timeout_s=math.ceil(60.0 * run.train.timeout_minutes)),
        scaling_config=ScalingConfig(
            num_workers=_num_workers(run),
            use_gpu=bool(run.train.use_gpu),
            resources_per_worker=worker_resources(run.train, _cpus(run)),
            accelerator_type=run.train.accelerator_type or None,
        ),
        run_config=RunConfig(
            name=_RAY_RUN_NAME,
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=[Notices(progress, run.train.max_failures), *named_callbacks()],
            # `Notices` ends a run whose workers are lost again and again; Ray would count every loss of a run of days.
            failure_config=FailureConfig(max_failures=-1),
            logging_config=LoggingConfig("ERROR"),
            # Actors and tasks that the workers start inherit it.
            worker_runtime_env={"env_vars": {**computing_environment(), **settings_environment(run.storage)}},
        ),
    )
    watch = MachineWatch(
        _demand(run),
        read_capacity(),
        run.train.wait_minutes,
        progress,
        lambda text: progress.add.remote(WaitingForMachines(text)),
    )
    try:
        with forwarded(progress, forward):
            result = result_of(trainer, progress, run.output, watch)
    finally:
        curves.draw()
    if bad := ray.get(progress.bad_images.remote()):
        write_bad_images(run.output, bad)
    mistake = ray.get(progress.mistake.remote())
    if mistake is not None:
        raise mistake
    assert isinstance(result.return_value, WorkerResult)
    return result.return_value


def _num_workers(run: TrainRun) -> int | tuple[int, int]:
    most, least = run.train.num_workers, run.train.min_workers
    return most if least in (0, most) else (least, most)


def _summary(run: TrainRun, result: WorkerResult) -> TrainSummary:
    state = result.state
    images = state.step * run.train.images_per_step
    return TrainSummary(
        checkpoint=checkpoint_uri(run.output, "last" if state.best_step is None else "best"),
        last=checkpoint_uri(run.output, "last"),
        steps=state.step,
        images=images,
        images_per_second=images / state.seconds if state.seconds else 0.0,
        seconds=state.seconds,
        best_score=state.best_score,
        best_step=state.best_step,
        resumed_from=result.resumed_from,
        curves=picture_uri(run.output),
    )
