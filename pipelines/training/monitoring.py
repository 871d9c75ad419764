"""What a person sees of a run while it goes on: events for the terminal, and numbers for the trackers."""

import resource
from collections.abc import Mapping

import torch

from pipelines.training.events import StepReport, ValidationReport
from pipelines.training.job import TrainingJob
from pipelines.training.meter import LossMeter, Stopwatch
from pipelines.training.validation_task import TaskResult

_STEP_SCALARS = ("learning_rate", "grad_norm", "images_per_second", "epoch", "waiting", "memory_gib", "skipped_steps")


def report_steps(job: TrainingJob, meter: LossMeter, done: int, steps: int, watch: Stopwatch) -> dict[str, float]:
    """Means over the last `steps` steps, by name; every worker has to call it, the first one tells and gets them."""
    settings = job.run.train
    losses = meter.means()
    result = meter.result
    if job.board is None or result is None or result.grad_norm is None:
        return {}
    seconds, waited = watch.lap()
    report = StepReport(
        step=done,
        steps=settings.steps,
        epoch=done * settings.images_per_step / job.epoch_images,
        losses=losses,
        learning_rate=result.learning_rate,
        grad_norm=float(result.grad_norm),
        images_per_second=steps * settings.images_per_step / seconds,
        seconds_left=(settings.steps - done) * seconds / steps,
        waiting=waited / seconds,
        memory_gib=peak_memory_gib(job.device),
        skipped_steps=meter.skipped,
    )
    scalars = _with_total("loss", losses) | {f"train/{name}": getattr(report, name) for name in _STEP_SCALARS}
    job.board.scalars(scalars, done)
    job.tell(report)
    return scalars


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that this process has held: of the GPU where it computes on one, of the machine otherwise, GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def report_validation(job: TrainingJob, result: TaskResult, step: int, *, is_best: bool) -> dict[str, float]:
    """The scores of a validation, by name, and its pictures; on the first worker."""
    assert job.board is not None
    scores = result.scores
    scalars = {f"validation/{name}": value for name, value in scores.metrics.items()}
    scalars |= _with_total("validation_loss", result.losses) if result.losses else {}
    job.board.scalars(scalars | {f"validation_AP_of/{name}": value for name, value in scores.categories.items()}, step)
    if result.pictures is not None:
        job.board.picture("validation/pictures", result.pictures, step)
    job.tell(
        ValidationReport(
            step,
            scores.images,
            scores.failed_images,
            scores.metrics,
            scores.score,
            is_best,
            result.seconds,
            categories=scores.categories,
            losses=result.losses,
        )
    )
    return scalars


def _with_total(group: str, losses: Mapping[str, float]) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in losses.items()} | {f"{group}/total": sum(losses.values())}
