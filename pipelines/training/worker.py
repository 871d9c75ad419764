"""What every worker of a training run does: Ray Train calls `train_worker` in each of them."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train

from maskrcnn_core.errors import UserError
from maskrcnn_core.model.loss_counts import mean_count, own_count
from maskrcnn_core.structures import ImageBatch
from maskrcnn_core.training.optimizer import learning_rate
from maskrcnn_core.training.seeds import image_seeds
from maskrcnn_core.training.state import TrainingState, save_training_state
from maskrcnn_core.training.step import StepResult, seed_step, training_step
from maskrcnn_core.weights.checkpoint import save_checkpoint
from pipelines.cluster.lost_processes import require_room
from pipelines.training.bad_images import write_bad_images
from pipelines.training.batch import Batch
from pipelines.training.checkpoint_saver import publish_stored
from pipelines.training.checkpoint_store import list_checkpoints
from pipelines.training.config import TrainRun
from pipelines.training.events import MachineLeaves
from pipelines.training.job import TrainingJob, open_batches, prepare_job
from pipelines.training.meter import LossMeter, Stopwatch
from pipelines.training.monitoring import report_steps
from pipelines.training.output import checkpoint_uri, resume_uri
from pipelines.training.progress_log import Orders
from pipelines.training.ray_reports import RayReports
from pipelines.training.sample_log import SampleLog
from pipelines.training.validator import Validator


@dataclass(frozen=True)
class WorkerConfig:
    """What the driver gives to each worker.

    Attributes:
        run: configuration with absolute paths and the model's categories.
        progress: `ProgressLog` actor.
        owner: proof that the workers may write to the run's folder.
        environment: the driver's variables for the trackers.
    """

    run: TrainRun
    progress: Any
    owner: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class WorkerResult:
    """What rank 0 hands back.

    Attributes:
        state: at the end.
        resumed_from: step of the checkpoint that the workers started from, 0 without one.
        is_finished: the run was not asked to end before its last step.
    """

    state: TrainingState
    resumed_from: int
    is_finished: bool = True


def train_worker(config: dict[str, WorkerConfig]) -> WorkerResult | None:
    """Train from the last checkpoint, if there is one, to the last step.

    A `UserError` is recorded with the driver first: the group that Ray starts in place of the failed one finds it
    there and leaves, because no restart would mend it. So is a full disk, whoever noticed it.
    """
    progress = config["worker"].progress
    if ray.get(progress.mistake.remote()) is not None:
        return None
    try:
        return _train(config["worker"])
    except UserError as error:
        ray.get(progress.fail.remote(error))
        raise


def _train(config: WorkerConfig) -> WorkerResult:
    try:
        with contextlib.ExitStack() as stack:
            job, start = prepare_job(config.run, config.progress, config.owner, config.environment, stack)
            loop = TrainingLoop(job, start)
            state = loop.run()
            if job.board is not None:
                job.board.conclude("interrupted" if loop.was_stopped else "finished", _results(state))
    except Exception as error:
        require_room(error, config.run.output)
        raise
    return WorkerResult(state, resumed_from=start.step, is_finished=not loop.was_stopped)


def _results(state: TrainingState) -> dict[str, float]:
    """Numbers of a whole run."""
    numbers = {"best_score": state.best_score, "best_step": state.best_step, "steps": state.step}
    return {name: value for name, value in numbers.items() if value is not None}


class TrainingLoop:
    """The steps of one worker, with what is due between them.

    Args:
        job: what the steps work on.
        start: steps done before.
    """

    def __init__(self, job: TrainingJob, start: TrainingState) -> None:
        self._job, self._start, self._state = job, start, start
        settings = job.run.train
        self._meter = LossMeter(job.world_size, settings.max_skipped_steps, start.skipped)
        self._watch = Stopwatch()
        self._samples = SampleLog(job.run.output, start.step, job.rank, job.world_size)
        self._reported = start.step
        self._notice: object = None
        self._answer: Any = None
        self.was_stopped = False
        self._saved = start.step
        self._listed_bad = 0
        self._reports = RayReports(job)
        self._validator = Validator(job, self._reports)

    def run(self) -> TrainingState:
        """Every step that is left, or as many as validation asks for; returns the state after the last."""
        job, settings = self._job, self._job.run.train
        self._catch_up()
        if self._start.step < settings.steps and not self._start.stopped:
            with open_batches(job, self._start.step) as batches:
                waited_for = self._watch.waiting_for(batches)
                for step, batch in zip(range(self._start.step, settings.steps), waited_for, strict=True):
                    self.was_stopped = self._is_stopped_before(step)
                    if self.was_stopped or self._step(step, batch):
                        break
        if job.saver is not None:
            job.saver.wait()
        self._validator.collect(wait=not self.was_stopped)
        self._state = self._validator.with_best(self._state)
        if self._validator.is_in_task and not self.was_stopped:  # scores of the last weights
            self._reports.send(self._state.step, at_once=True)
        return self._state

    def _is_stopped_before(self, step: int) -> bool:
        """Whether the run was asked to end; then, and where it is time to, the steps done are saved. See
        `ProgressLog`."""
        progress = self._job.progress
        before, self._answer = self._answer, progress.begin.remote(step)
        orders = Orders() if before is None else ray.get(before)
        is_stopped = orders.stop_before is not None and step >= orders.stop_before
        if (is_stopped or step == orders.save_before) and step > self._saved:
            self._save(step, stopped=False, is_candidate=False)
        return is_stopped

    def _catch_up(self) -> None:
        """What a run that was cut off left undone after its last checkpoint."""
        job = self._job
        if job.rank == 0:
            ray.get(job.progress.restart.remote())
        if job.rank == 0 and self._start.step:
            stored = list_checkpoints(resume_uri(job.run.output))
            taken = next(checkpoint for checkpoint in stored if checkpoint.step == self._start.step)
            publish_stored(taken, job.run.output, checkpoint_uri(job.run.output, "last"))
        self._validator.resume()
        self._state = self._validator.with_best(self._start)

    def _step(self, step: int, batch: Batch[ImageBatch]) -> bool:
        """One step and what is due after it; returns whether the run ends here."""
        job, settings = self._job, self._job.run.train
        done = step + 1
        is_last = done == settings.steps
        self._meter.add(_compute(job, step, batch), step, batch.image_ids)
        self._samples.add(batch.image_ids)
        report_due = done % settings.log_every == 0 or is_last
        validation_due = _is_due(done, settings.validate_every, is_last) and job.validation is not None
        leaving = False
        if report_due:
            self._reports.add(report_steps(job, self._meter, done, done - self._reported, self._watch))
            self._reported = done
            leaving = self._is_machine_leaving(done)
        ends = False
        if validation_due or (report_due and self._validator.is_in_task):
            ends = self._validate(done, is_due=validation_due)
        in_task = validation_due and self._validator.is_in_task
        save_due = _is_due(done, settings.checkpoint_every, is_last) or leaving or in_task or ends
        if save_due:
            self._save(done, stopped=ends and not is_last, is_candidate=in_task)
            if leaving and job.saver is not None:
                job.saver.wait()
        if report_due or save_due:
            with self._watch.paused():
                self._reports.send(done, at_once=save_due)
        return ends

    def _validate(self, done: int, *, is_due: bool) -> bool:
        """Score the weights or count scores of earlier ones; returns whether they say that the run should end.

        Every worker has to call it.
        """
        with self._watch.paused():
            if self._validator.is_in_task:
                self._validator.collect(wait=False)
            elif is_due:
                self._validator.validate_here(done)
            self._state = self._validator.with_best(self._state)
        return self._validator.is_exhausted(done)

    def _is_machine_leaving(self, done: int) -> bool:
        """Whether a machine of the run has got notice, told once for each notice; a barrier."""
        notice = ray.train.get_preemption_info()
        if notice is None or notice == self._notice:
            return False
        self._notice = notice
        self._job.tell(MachineLeaves(done))
        return True

    def _save(self, done: int, *, stopped: bool, is_candidate: bool) -> None:
        """Hand a checkpoint with everything for a resume to the saver. Every worker has to call it."""
        job = self._job
        with self._watch.paused():
            self._meter.settle()
            self._samples.write()
            self._list_bad_images()
            self._state = replace(
                self._state,
                step=done,
                seconds=self._start.seconds + self._watch.total(),
                skipped=self._meter.skipped,
                stopped=stopped,
            )
            if job.saver is not None:
                with job.saver.saving(done) as folder:
                    save_checkpoint(folder, job.best_weights, job.run.model)
                    learnt = None if job.average is None else job.detector.state_dict()
                    save_training_state(folder, self._state, job.optimizer, learnt)
            if is_candidate:
                self._validator.start(done)
            self._saved = done

    def _list_bad_images(self) -> None:
        """Write down what could not be used so far; on rank 0."""
        if self._job.rank == 0 and (bad := ray.get(self._job.progress.bad_images.remote(self._listed_bad))):
            write_bad_images(self._job.run.output, bad)
            self._listed_bad = len(bad)


def _is_due(done: int, every: int, is_last: bool) -> bool:
    return is_last or (every > 0 and done % every == 0)


def _compute(job: TrainingJob, step: int, batch: Batch[ImageBatch]) -> StepResult:
    settings = job.run.train
    seed_step(settings.seed, step, job.rank)
    rate = learning_rate(
        step,
        peak=settings.peak_learning_rate,
        steps=settings.steps,
        warmup_steps=settings.warmup_steps,
        warmup_factor=settings.warmup_factor,
        schedule=settings.schedule,
        decay_steps=settings.decay_steps,
        decay_factor=settings.decay_factor,
    )
    seeds = image_seeds(settings.seed, step, job.slots).to(job.device, non_blocking=True)
    result = training_step(
        job.learner,
        batch.images,
        replace(batch.targets, seeds=seeds),
        job.optimizer,
        learning_rate=rate,
        clip_norm=settings.clip_norm,
        bfloat16=settings.precision == "bfloat16",
        with_grad_norm=True,
        skip_non_finite=True,
        accumulate=settings.accumulate,
        proposals=batch.proposals,
        count=mean_count if job.world_size > 1 else own_count,
    )
    if job.average is not None:
        job.average.update(step + 1)
    return result
