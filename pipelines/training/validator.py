"""Validations of one worker's run: started when they are due, counted when they have ended, and what follows."""

import shutil
import time
from dataclasses import replace
from typing import Any

from maskrcnn_core.training.state import TrainingState
from maskrcnn_core.weights.checkpoint import save_checkpoint
from pipelines.training.checkpoint_saver import staging_folder
from pipelines.training.events import CheckpointSaved, StoppedEarly
from pipelines.training.gathering import gather_to_first
from pipelines.training.job import TrainingJob
from pipelines.training.monitoring import report_validation
from pipelines.training.output import checkpoint_uri, publish
from pipelines.training.ray_reports import RayReports
from pipelines.training.score_history import ScoreHistory, best_of, is_exhausted, read_history
from pipelines.training.validation import PredictedShare, draw_pictures, predict_share, score_shares
from pipelines.training.validation_losses import mean_losses, sum_losses
from pipelines.training.validation_task import (
    PendingValidations,
    TaskResult,
    candidate_uri,
    settle_candidate,
    waiting_candidates,
)


class Validator:
    """Scores the weights of a run in its workers, or in tasks while training goes on (train.validate_in).

    Scores are counted on the first worker alone: the others know none.

    Args:
        job: of this worker.
        reports: get the scores.
    """

    def __init__(self, job: TrainingJob, reports: RayReports) -> None:
        self._job, self._reports = job, reports
        self.is_in_task = job.run.train.validate_in == "task" and job.validation is not None
        self._history = ScoreHistory(job.run.output, read_history(job.run.output) if job.rank == 0 else ())
        self._pending = PendingValidations(job.run) if self.is_in_task and job.rank == 0 else None

    def resume(self) -> None:
        """Score what a run that was cut off has left unscored."""
        if self._pending is not None:
            for step in waiting_candidates(self._job.run.output):
                self._pending.start(step)

    def start(self, done: int) -> None:
        """Score the weights after `done` steps in tasks; does not wait."""
        if self._pending is not None:
            _publish_weights(self._job, candidate_uri(self._job.run.output, done))
            self._pending.start(done)

    def collect(self, *, wait: bool) -> None:
        """Count the scores of validations in tasks that have ended; with `wait` of all."""
        output = self._job.run.output
        for step, result in self._pending.finished(wait=wait) if self._pending is not None else ():
            is_best = self._is_best(result, step)
            self._count(result, step, is_best=is_best)
            settle_candidate(output, step, is_best=is_best)
            if is_best:
                self._job.tell(CheckpointSaved(step, checkpoint_uri(output, "best")))

    def is_exhausted(self, done: int) -> bool:
        """Whether the run should end after `done` steps, for want of better scores. Every worker has to call it."""
        job, settings = self._job, self._job.run.train
        if not settings.patience:
            return False
        history = [entry for entry in self._history.entries if entry.step <= done]
        best = best_of(history)
        ends = is_exhausted(history, settings.patience)
        if ends and best is not None and done < settings.steps:
            job.tell(StoppedEarly(done, settings.patience, best.step))
        return job.agree(ends)

    def with_best(self, state: TrainingState) -> TrainingState:
        """A state that knows the best score so far."""
        best = best_of(self._history.entries)
        return state if best is None else replace(state, best_score=best.score, best_step=best.step)

    def validate_here(self, done: int) -> None:
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
        parts = gather_to_first((share, sums), rank=job.rank, world_size=job.world_size)
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

    def _is_best(self, result: TaskResult, step: int) -> bool:
        score = result.scores.score
        best = best_of([entry for entry in self._history.entries if entry.step < step])
        return score is not None and (best is None or best.score is None or score > best.score)

    def _count(self, result: TaskResult, step: int, *, is_best: bool) -> None:
        self._history.add(step, result.scores, result.losses)
        numbers = report_validation(self._job, result, step, is_best=is_best)
        self._reports.add(numbers | {"validation/step": step})


def _publish_weights(job: TrainingJob, uri: str) -> None:
    folder = staging_folder(job.run.output)
    try:
        save_checkpoint(folder, job.best_weights, job.run.model)
        publish(folder, uri)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
