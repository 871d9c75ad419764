"""What every worker of a training run does: Ray Train calls `train_worker` in each of them."""

import contextlib
import shutil
import time
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist

from maskrcnn_core.errors import UserError
from maskrcnn_core.model.loss_counts import mean_count, own_count
from maskrcnn_core.training.optimizer import learning_rate
from maskrcnn_core.training.seeds import image_seeds
from maskrcnn_core.training.state import TrainingState, save_training_state
from maskrcnn_core.training.step import StepResult, seed_step, training_step
from maskrcnn_core.weights.checkpoint import save_checkpoint
from pipelines import storage
from pipelines.cluster.lost_processes import require_room
from pipelines.training.checkpoint_saver import publish_stored, staging_folder
from pipelines.training.checkpoint_store import list_checkpoints
from pipelines.training.config import TrainRun
from pipelines.training.events import CheckpointSaved, MachineLeaves, Orders, StoppedEarly
from pipelines.training.job import Batch, TrainingJob, open_batches, prepare_job
from pipelines.training.meter import LossMeter, Stopwatch
from pipelines.training.monitoring import report_steps, report_validation
from pipelines.training.output import checkpoint_uri, publish, resume_uri, upload_folder
from pipelines.training.sample_log import SampleLog
from pipelines.training.score_history import best_of, is_exhausted, read_history, write_scores
from pipelines.training.validation import PredictedShare, draw_pictures, predict_share, score_shares
from pipelines.training.validation_losses import mean_losses, sum_losses
from pipelines.training.validation_task import (
    PendingValidations,
    TaskResult,
    candidate_uri,
    settle_candidate,
    waiting_candidates,
)


@dataclass(frozen=True)
class WorkerConfig:
    """What the driver gives to each worker.

    Attributes:
        run: configuration with absolute paths and the model's categories.
        progress: `ProgressLog` actor.
        owner: proof that the workers may write to the run's folder.
    """

    run: TrainRun
    progress: Any
    owner: str


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
            job, start = prepare_job(config.run, config.progress, config.owner, stack)
            loop = TrainingLoop(job, start)
            state = loop.run()
    except Exception as error:
        require_room(error, config.run.output)
        raise
    return WorkerResult(state, resumed_from=start.step, is_finished=not loop.was_stopped)


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
        self._validations: PendingValidations | None = None
        if settings.validate_in == "task" and job.validation is not None and job.rank == 0:
            self._validations = PendingValidations(job.run)

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
        self._collect_scores(wait=not self.was_stopped)
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
        if self._validations is not None:
            for step in waiting_candidates(job.run.output):
                self._validations.start(step)
        self._state = self._with_best(self._start)

    def _step(self, step: int, batch: Batch) -> bool:
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
            report_steps(job, self._meter, done, done - self._reported, self._watch)
            self._reported = done
            leaving = self._is_machine_leaving(done)
        ends = False
        if validation_due or (report_due and settings.validate_in == "task"):
            ends = self._validate(done, is_due=validation_due)
        in_task = validation_due and settings.validate_in == "task"
        if _is_due(done, settings.checkpoint_every, is_last) or leaving or in_task or ends:
            self._save(done, stopped=ends and not is_last, is_candidate=in_task)
            if leaving and job.saver is not None:
                job.saver.wait()
        return ends

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
            self._state = replace(
                self._state,
                step=done,
                seconds=self._start.seconds + self._watch.total(),
                skipped=self._meter.skipped,
                stopped=stopped,
            )
            if job.saver is not None and job.writer is not None:
                with job.saver.saving(done) as folder:
                    save_checkpoint(folder, job.best_weights, job.run.model)
                    learnt = None if job.average is None else job.detector.state_dict()
                    save_training_state(folder, self._state, job.optimizer, learnt)
                if is_candidate:
                    self._start_validation(done)
                job.writer.flush()
                upload_folder(job.tensorboard, storage.join(job.run.output, "tensorboard"))
            self._saved = done
            ray.train.report({"step": done})

    def _start_validation(self, done: int) -> None:
        assert self._validations is not None
        _publish_weights(self._job, candidate_uri(self._job.run.output, done))
        self._validations.start(done)

    def _validate(self, done: int, *, is_due: bool) -> bool:
        """Score the weights or fetch the scores of earlier ones; returns whether they say that the run should end.

        Every worker has to call it.
        """
        job, settings = self._job, self._job.run.train
        with self._watch.paused():
            if settings.validate_in == "task":
                self._collect_scores(wait=False)
            elif is_due:
                self._validate_here(done)
        if not settings.patience:
            return False
        ends = False
        if job.rank == 0:
            history = [entry for entry in read_history(job.run.output) if entry.step <= done]
            best = best_of(history)
            ends = is_exhausted(history, settings.patience)
            if ends and best is not None and done < settings.steps:
                job.tell(StoppedEarly(done, settings.patience, best.step))
        return job.agree(ends)

    def _validate_here(self, done: int) -> None:
        """Every worker predicts its share of the images; the first one scores and publishes."""
        job, run = self._job, self._job.run
        assert job.validation is not None
        begin = time.perf_counter()
        part: dict[str, Any] = {
            "device": job.device,
            "rank": job.rank,
            "world_size": job.world_size,
            "proposals": job.validation_proposals,
        }
        sums = sum_losses(job.best_detector(), run, **part) if run.train.validation_losses else {}
        share = predict_share(
            job.best_detector(),
            run.model,
            job.validation,
            run.data.val,
            precision=run.train.precision,
            max_pixels=run.data.max_pixels,
            **part,
        )
        parts: list[Any] = [(share, sums)]
        if job.world_size > 1:
            parts = [None] * job.world_size
            dist.all_gather_object(parts, (share, sums))
        if job.rank == 0:
            self._count_here([share for share, _ in parts], mean_losses([sums for _, sums in parts]), done, begin)

    def _count_here(self, shares: list[PredictedShare], losses: dict[str, float], done: int, begin: float) -> None:
        job, run = self._job, self._job.run
        assert job.validation is not None
        scores = score_shares(shares, run.model, job.validation)
        pictures = None
        if run.train.pictures:
            pictures = draw_pictures(
                shares[0], job.validation, run.data.val, number=run.train.pictures, max_pixels=run.data.max_pixels
            )
        result = TaskResult(scores, pictures, losses, time.perf_counter() - begin)
        is_best = self._is_best(result, done)
        if is_best:
            _publish_weights(job, checkpoint_uri(run.output, "best"))
            job.tell(CheckpointSaved(done, checkpoint_uri(run.output, "best")))
        self._count(result, done, is_best=is_best)

    def _collect_scores(self, *, wait: bool) -> None:
        """Scores of validations in tasks that have ended; on rank 0."""
        output = self._job.run.output
        for step, result in self._validations.finished(wait=wait) if self._validations is not None else ():
            is_best = self._is_best(result, step)
            self._count(result, step, is_best=is_best)
            settle_candidate(output, step, is_best=is_best)
            if is_best:
                self._job.tell(CheckpointSaved(step, checkpoint_uri(output, "best")))

    def _is_best(self, result: TaskResult, step: int) -> bool:
        score = result.scores.score
        earlier = [entry for entry in read_history(self._job.run.output) if entry.step < step]
        best = best_of(earlier)
        return score is not None and (best is None or best.score is None or score > best.score)

    def _count(self, result: TaskResult, step: int, *, is_best: bool) -> None:
        write_scores(self._job.run.output, step, result.scores, result.losses)
        report_validation(self._job, result, step, is_best=is_best)
        self._state = self._with_best(self._state)

    def _with_best(self, state: TrainingState) -> TrainingState:
        best = best_of(read_history(self._job.run.output))
        return state if best is None else replace(state, best_score=best.score, best_step=best.step)


def _is_due(done: int, every: int, is_last: bool) -> bool:
    return is_last or (every > 0 and done % every == 0)


def _compute(job: TrainingJob, step: int, batch: Batch) -> StepResult:
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


def _publish_weights(job: TrainingJob, uri: str) -> None:
    folder = staging_folder(job.run.output)
    try:
        save_checkpoint(folder, job.best_weights, job.run.model)
        publish(folder, uri)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
