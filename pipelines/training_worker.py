"""What every worker of a training run does: Ray Train calls `train_worker` in each of them."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

from maskrcnn_core.errors import UserError
from maskrcnn_core.train_config import TrainRun
from maskrcnn_core.training.optimizer import learning_rate
from maskrcnn_core.training.state import TrainingState, save_training_state
from maskrcnn_core.training.step import StepResult, seed_step, training_step
from maskrcnn_core.weights.checkpoint import save_checkpoint
from pipelines import storage
from pipelines.training_job import Batch, TrainingJob, open_batches, prepare_job
from pipelines.training_meter import LossMeter, Stopwatch
from pipelines.training_output import checkpoint_uri, publish, upload_folder
from pipelines.training_progress import CheckpointSaved, StepReport, ValidationReport
from pipelines.training_validation import Scores, validate


@dataclass(frozen=True)
class WorkerConfig:
    """What the driver gives to each worker.

    Attributes:
        run: configuration with absolute paths and the model's categories.
        progress: `ProgressLog` actor.
    """

    run: TrainRun
    progress: Any


@dataclass(frozen=True)
class WorkerResult:
    """What rank 0 hands back.

    Attributes:
        state: at the end.
        resumed_from: step of the checkpoint that the workers started from, 0 without one.
    """

    state: TrainingState
    resumed_from: int


def train_worker(config: dict[str, WorkerConfig]) -> WorkerResult | None:
    """Train from the last checkpoint, if there is one, to the last step.

    A `UserError` is recorded with the driver first: the group that Ray starts in place of the failed one finds it
    there and leaves, because no restart would mend it.
    """
    run, progress = config["worker"].run, config["worker"].progress
    if ray.get(progress.mistake.remote()) is not None:
        return None
    try:
        with contextlib.ExitStack() as stack:
            job, start = prepare_job(run, progress, stack)
            state = _run_steps(job, start)
    except UserError as error:
        ray.get(progress.fail.remote(error))
        raise
    return WorkerResult(state, resumed_from=start.step)


def _run_steps(job: TrainingJob, start: TrainingState) -> TrainingState:
    settings = job.run.train
    state, meter, watch, reported = start, LossMeter(), Stopwatch(), start.step
    if start.step == settings.steps:
        _save(job, start)  # it was cut off between Ray's checkpoint and ours
        return state
    with open_batches(job, start.step) as batches:
        for step, batch in zip(range(start.step, settings.steps), batches, strict=True):
            done = step + 1
            is_last = done == settings.steps
            report_due = done % settings.log_every == 0 or is_last
            meter.add(_step(job, step, batch, with_grad_norm=report_due), step, batch.image_ids)
            if report_due:
                _report(job, meter, done, done - reported, watch)
                reported = done
            if _is_due(done, settings.validate_every, is_last) and job.validation is not None:
                with watch.paused():
                    state = _validate(job, state, done)
            if _is_due(done, settings.checkpoint_every, is_last):
                meter.settle()
                state = replace(state, step=done, seconds=start.seconds + watch.total())
                with watch.paused():
                    _save(job, state)
    return state


def _is_due(done: int, every: int, is_last: bool) -> bool:
    return is_last or (every > 0 and done % every == 0)


def _step(job: TrainingJob, step: int, batch: Batch, *, with_grad_norm: bool) -> StepResult:
    settings = job.run.train
    seed_step(settings.seed, step, job.rank)
    rate = learning_rate(
        step,
        peak=settings.learning_rate,
        steps=settings.steps,
        warmup_steps=settings.warmup_steps,
        warmup_factor=settings.warmup_factor,
        schedule=settings.schedule,
        decay_steps=settings.decay_steps,
        decay_factor=settings.decay_factor,
    )
    return training_step(
        job.learner,
        batch.images.to(job.device),
        batch.targets.to(job.device),
        job.optimizer,
        learning_rate=rate,
        clip_norm=settings.clip_norm,
        bfloat16=settings.precision == "bfloat16",
        with_grad_norm=with_grad_norm,
        proposals=None if batch.proposals is None else batch.proposals.to(job.device),
    )


def _report(job: TrainingJob, meter: LossMeter, done: int, steps: int, watch: Stopwatch) -> None:
    settings = job.run.train
    losses = meter.means(job.world_size)
    result = meter.result
    if job.writer is None or result is None or result.grad_norm is None:
        return
    seconds = watch.lap()
    report = StepReport(
        step=done,
        steps=settings.steps,
        epoch=done * settings.batch_size / len(job.data.images),
        losses=losses,
        learning_rate=result.learning_rate,
        grad_norm=float(result.grad_norm),
        images_per_second=steps * settings.batch_size / seconds,
        seconds_left=(settings.steps - done) * seconds / steps,
    )
    for name, value in losses.items():
        job.writer.add_scalar(f"loss/{name}", value, done)
    job.writer.add_scalar("loss/total", sum(losses.values()), done)
    for name in ("learning_rate", "grad_norm", "images_per_second", "epoch"):
        job.writer.add_scalar(f"train/{name}", getattr(report, name), done)
    job.tell(report)


def _validate(job: TrainingJob, state: TrainingState, done: int) -> TrainingState:
    """Score the weights; publish them as `best` if none scored higher. Every rank has to call it, rank 0 acts on it."""
    assert job.validation is not None
    begin = time.perf_counter()
    scores = validate(
        job.detector,
        job.run.model,
        job.validation,
        job.run.data.val,
        device=job.device,
        precision=job.run.train.precision,
        max_pixels=job.run.data.max_pixels,
        rank=job.rank,
        world_size=job.world_size,
        proposals=job.validation_proposals,
    )
    if scores is None or job.writer is None:
        return state
    is_best = scores.score is not None and (state.best_score is None or scores.score > state.best_score)
    if is_best:
        _publish_weights(job, done, "best")
        state = replace(state, best_score=scores.score, best_step=done)
    for name, value in scores.metrics.items():
        job.writer.add_scalar(f"validation/{name}", value, done)
    job.tell(_validation_report(scores, done, is_best, time.perf_counter() - begin))
    return state


def _validation_report(scores: Scores, done: int, is_best: bool, seconds: float) -> ValidationReport:
    return ValidationReport(done, scores.images, scores.failed_images, scores.metrics, scores.score, is_best, seconds)


def _save(job: TrainingJob, state: TrainingState) -> None:
    """Hand a checkpoint with everything for a resume to Ray, and publish it as `last`. Every rank has to call it."""
    if job.writer is None:
        ray.train.report({"step": state.step})
        return
    with _staging(job.run.output) as folder:
        save_checkpoint(folder, job.detector.state_dict(), job.run.model)
        save_training_state(folder, state, job.optimizer)
        ray.train.report({"step": state.step}, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))
        publish(folder, checkpoint_uri(job.run.output, "last"))
    job.writer.flush()
    upload_folder(job.tensorboard, storage.join(job.run.output, "tensorboard"))
    job.tell(CheckpointSaved(state.step, checkpoint_uri(job.run.output, "last")))


def _publish_weights(job: TrainingJob, done: int, name: str) -> None:
    uri = checkpoint_uri(job.run.output, name)
    with _staging(job.run.output) as folder:
        save_checkpoint(folder, job.detector.state_dict(), job.run.model)
        publish(folder, uri)
    job.tell(CheckpointSaved(done, uri))


@contextlib.contextmanager
def _staging(output: str) -> Iterator[Path]:
    """A folder to write a checkpoint in: on the output's own file system, so that publishing it is a rename."""
    parent = None
    if storage.is_local(output):
        parent = Path(storage.filesystem_and_path(output)[1], "checkpoints")
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in list(parent.glob(".staging-*")):
            shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=".staging-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
