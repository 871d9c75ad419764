"""What a person sees of a run while it goes on: events for the terminal, and TensorBoard."""

import resource

import torch

from pipelines.training.events import StepReport, ValidationReport
from pipelines.training.job import TrainingJob
from pipelines.training.meter import LossMeter, Stopwatch
from pipelines.training.validation_task import TaskResult

_STEP_SCALARS = ("learning_rate", "grad_norm", "images_per_second", "epoch", "waiting", "memory_gib", "skipped_steps")


def report_steps(job: TrainingJob, meter: LossMeter, done: int, steps: int, watch: Stopwatch) -> None:
    """Means over the last `steps` steps; every worker has to call it, the first one tells."""
    settings = job.run.train
    losses = meter.means()
    result = meter.result
    if job.writer is None or result is None or result.grad_norm is None:
        return
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
    for name, value in losses.items():
        job.writer.add_scalar(f"loss/{name}", value, done)
    job.writer.add_scalar("loss/total", sum(losses.values()), done)
    for name in _STEP_SCALARS:
        job.writer.add_scalar(f"train/{name}", getattr(report, name), done)
    job.tell(report)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that this process has held: of the GPU where it computes on one, of the machine otherwise, GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def report_validation(job: TrainingJob, result: TaskResult, step: int, *, is_best: bool) -> None:
    """The scores of a validation, and its pictures; on the first worker."""
    assert job.writer is not None
    scores = result.scores
    for name, value in scores.metrics.items():
        job.writer.add_scalar(f"validation/{name}", value, step)
    for name, value in scores.categories.items():
        job.writer.add_scalar(f"validation_AP_of/{name}", value, step)
    for name, value in result.losses.items():
        job.writer.add_scalar(f"validation_loss/{name}", value, step)
    if result.losses:
        job.writer.add_scalar("validation_loss/total", sum(result.losses.values()), step)
    if result.pictures is not None:
        job.writer.add_image("validation/pictures", result.pictures, step, dataformats="HWC")
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
