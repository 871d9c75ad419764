"""Train a Mask R-CNN: `python -m jobs.train --config FILE --data.train.images URI ... --output URI`."""

import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.cli import GOES_ON, run_job
from maskrcnn_core.printable import printable
from pipelines.training.config import TrainRun
from pipelines.training.data_config import DatasetConfig

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.text import Text

    from pipelines.training.events import InitialWeightsLoaded, StepReport, TrainingEvent, ValidationReport
    from pipelines.training.run import TrainSummary

    Work = Callable[[Callable[[TrainingEvent], None]], TrainSummary]

SECONDS_TO_SAVE_AND_END = 30.0

_TIMED_STEPS = 20
_SHOWN_METRICS = ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50", "proposals/AR@100", "proposals/AR@1000")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    return run_job(
        TrainRun, run, prog="python -m jobs.train", argv=argv, interrupted=GOES_ON, grace=SECONDS_TO_SAVE_AND_END
    )


def run(settings: TrainRun) -> int:
    """Train with progress on the terminal, then say where the checkpoint is and what can be done with it."""
    print("\n".join(summary_lines(settings, train_with_progress(settings))))
    return 0


def train_with_progress(settings: TrainRun) -> "TrainSummary":
    """Train with a progress bar, or with lines of text where stdout is no terminal."""
    from pipelines.training.run import train

    watch = _with_bar if sys.stdout.isatty() else _with_lines
    return watch(lambda show: train(settings, Teller(show, lambda line: print(line, file=sys.stderr, flush=True))))


class Teller:
    """Shows the events of a run, and behind some of them what a person should know who has to wait for it.

    Args:
        show: an event.
        note: a line.
    """

    def __init__(self, show: Callable[["TrainingEvent"], None], note: Callable[[str], None]) -> None:
        self._show, self._note = show, note
        self._timed_from: int | None = None
        self._validates = False

    def __call__(self, event: "TrainingEvent") -> None:
        """Show it."""
        from pipelines.training.events import SchedulePlanned, StepReport, TrainingStarted

        self._show(event)
        if isinstance(event, SchedulePlanned):
            for remark in event.remarks:
                self._note(f"note: {remark}")
        elif isinstance(event, TrainingStarted):
            self._timed_from, self._validates = event.step, event.validation_images > 0
        elif isinstance(event, StepReport) and self._is_timed(event):
            self._timed_from = None
            self._note(
                f"note: some {duration(event.seconds_left)} here for the {event.steps - event.step:,} steps left, at "
                f"{event.images_per_second:.1f} images/s" + ("; validations come on top" if self._validates else "")
            )

    def _is_timed(self, report: "StepReport") -> bool:
        """Whether it is the first that tells how long the rest will take: the first steps are slower."""
        enough = self._timed_from is not None and report.step - self._timed_from >= _TIMED_STEPS
        return enough and report.step < report.steps


def duration(seconds: float) -> str:
    """Roughly: 50 s, 40 min, 3 h 20 min, 5 days 4 h."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"


def event_line(event: "TrainingEvent") -> str:
    """One line of text for an event."""
    from pipelines.training.events import (
        CheckpointPassedOver,
        CheckpointSaved,
        ClusterNote,
        DataNote,
        ImageReplaced,
        InitialWeightsLoaded,
        Interrupted,
        MachineLeaves,
        SchedulePlanned,
        StepReport,
        StoppedEarly,
        TrackerFailed,
        TrainingStarted,
        WaitingForMachines,
        WorkersLost,
    )

    if isinstance(event, TrainingStarted):
        return _started_line(event)
    if isinstance(event, SchedulePlanned):
        return (
            f"{event.steps:,} steps of {event.batch_size:,} images = {_number(event.epochs)} epochs of "
            f"{event.epoch_images:,.0f} images"
        )
    if isinstance(event, DataNote | ClusterNote):
        return f"note: {printable(event.text)}"
    if isinstance(event, WaitingForMachines):
        return event.text
    if isinstance(event, ImageReplaced):
        rest = "; further ones are only listed in OUTPUT/bad_images.jsonl" if event.is_last else ""
        return f"replaced by another image: {printable(event.reason)}{rest}"
    if isinstance(event, WorkersLost):
        return f"workers lost: {event.reason}; others start from the last checkpoint, if train.max_failures allows"
    if isinstance(event, TrackerFailed):
        return f"{event.tracker} (train.trackers) fails, training goes on: {printable(event.reason)}"
    if isinstance(event, Interrupted):
        return f"saving a checkpoint, for at most {event.seconds:.0f} seconds; interrupt again to end at once"
    if isinstance(event, InitialWeightsLoaded):
        return _weights_line(event)
    if isinstance(event, StepReport):
        left = (
            time.strftime("%H:%M:%S", time.gmtime(event.seconds_left)) if event.seconds_left < 86400 else "over a day"
        )
        return f"step {event.step}/{event.steps}  {_step_numbers(event)}  left {left}"
    if isinstance(event, CheckpointSaved):
        return f"checkpoint at step {event.step}: {event.path}"
    if isinstance(event, CheckpointPassedOver):
        return f"checkpoint passed over, taking the one before it: {event.reason}"
    if isinstance(event, MachineLeaves):
        return f"a machine of this run will be taken away: checkpoint at step {event.step}"
    if isinstance(event, StoppedEarly):
        return (
            f"stopping at step {event.step}: {event.validations} validations in a row no better than that at step "
            f"{event.best_step} (train.patience)"
        )
    return _validation_line(event)


def _weights_line(event: "InitialWeightsLoaded") -> str:
    fresh = f"; start afresh: {', '.join(event.fresh)}" if event.fresh else ""
    known = f"; categories known by name: {', '.join(event.common)}" if event.common else ""
    new = f"; new categories: {', '.join(event.new)}" if event.new else ""
    return f"{event.taken} weights from {', '.join(event.sources)}{known}{new}{fresh}"


def _validation_line(event: "ValidationReport") -> str:
    shown = [name for name in _SHOWN_METRICS if name in event.metrics]
    numbers = "  ".join(f"{name} {event.metrics[name]:.3f}" for name in shown) or "no annotated object to score on"
    failed = f"  ({event.failed_images} images failed)" if event.failed_images else ""
    best = "  best so far" if event.is_best else ""
    losses = f"  loss {sum(event.losses.values()):.3f}" if event.losses else ""
    images = f"{event.images} images in {event.seconds:.0f} s{failed}"
    return f"validation at step {event.step}: {numbers}{losses}  {images}{best}"


def _number(value: float) -> str:
    """To three digits, whole from 100 on: 0.0213, 12, 12.3, 3,600."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _started_line(event: "TrainingEvent") -> str:
    from pipelines.training.events import TrainingStarted

    assert isinstance(event, TrainingStarted)
    begin = f"resuming after step {event.step}" if event.step else "starting"
    validation = f", {event.validation_images} to validate on" if event.validation_images else ""
    dropped = f", {event.dropped_annotations} faulty annotations left out" if event.dropped_annotations else ""
    return (
        f"{begin} of {event.steps} steps: {event.images} training images{validation}{dropped}; "
        f"{event.workers} worker{'s' if event.workers > 1 else ''} with {event.threads} threads"
        + (f", {event.loaders} loader process{'es' if event.loaders > 1 else ''} a worker" if event.loaders else "")
    )


def _step_numbers(event: "StepReport") -> str:
    losses = "  ".join(f"{name} {value:.3f}" for name, value in event.losses.items())
    return (
        f"loss {sum(event.losses.values()):.3f}  {losses}  lr {event.learning_rate:.2g}  "
        f"{event.images_per_second:.2f} images/s  waiting {event.waiting:.0%}  {event.memory_gib:.1f} GiB"
        + (f"  {event.skipped_steps} steps skipped" if event.skipped_steps else "")
    )


def summary_lines(settings: TrainRun, summary: "TrainSummary") -> list[str]:
    """What came out, and the next commands."""
    already = summary.resumed_from >= summary.steps
    name = "AP" if settings.model.finds == "detections" else "AR@1000"
    score = "" if summary.best_score is None else f", best {name} {summary.best_score:.3f} at step {summary.best_step}"
    lines = [
        f"{'already finished' if already else 'finished'}: {summary.steps} steps, {summary.images} images in "
        f"{summary.seconds:.0f} s ({summary.images_per_second:.2f} images/s){score}",
        *(f"note: {printable(note)}" for note in summary.notes),
        *_bad_image_lines(settings, summary),
        f"checkpoint: {summary.checkpoint}",
        *([f"curves: {summary.curves}"] if summary.curves else []),
    ]
    dataset = settings.data.val if settings.data.val.annotations else settings.data.train
    images = settings.data.val.annotations or settings.data.train.images
    root = f" --image_root {shlex.quote(settings.data.val.images)}" if settings.data.val.annotations else ""
    labels = f"{settings.output.rstrip('/')}-labels"
    lines += [
        "next:",
        f"  python -m jobs.label --checkpoint {shlex.quote(summary.checkpoint)} --images {shlex.quote(images)}{root} "
        f"--output {shlex.quote(labels)}{_proposal_options(settings, dataset)}",
    ]
    if settings.data.val.annotations:
        annotations = shlex.quote(settings.data.val.annotations)
        lines.append(f"  python -m jobs.evaluate --labels {shlex.quote(labels)} --annotations {annotations}")
    return lines


def _bad_image_lines(settings: TrainRun, summary: "TrainSummary") -> list[str]:
    if not summary.bad_images:
        return []
    number = f"{summary.bad_images} image{'s' if summary.bad_images > 1 else ''}"
    return [f"note: {number} could not be used: {settings.output}/bad_images.jsonl"]


def _proposal_options(settings: TrainRun, dataset: DatasetConfig) -> str:
    if settings.model.finds == "proposals":
        return " --label.record proposals"
    return "" if settings.model.dense.enabled else f" --proposals {shlex.quote(dataset.proposals)}"


def _with_lines(work: "Work") -> "TrainSummary":
    return work(lambda event: print(event_line(event), flush=True))


def _with_bar(work: "Work") -> "TrainSummary":
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    bar = Progress(TextColumn("step"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    task = bar.add_task("train", total=None)
    numbers = Text("workers start ...")
    with Live(Group(bar, numbers)) as live:
        return work(lambda event: _show(event, bar, task, numbers, live.console))


def _show(event: "TrainingEvent", bar: "Progress", task: "TaskID", numbers: "Text", console: "Console") -> None:
    from pipelines.training.events import StepReport, TrainingStarted

    if isinstance(event, StepReport):
        bar.update(task, completed=event.step, total=event.steps)
        numbers.plain = _step_numbers(event)
        return
    if isinstance(event, TrainingStarted):
        bar.reset(task, completed=event.step, total=event.steps)
        numbers.plain = "first steps ..."
    console.print(event_line(event), highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main())
