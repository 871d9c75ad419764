"""Label an image collection: `python -m jobs.label --checkpoint URI --images URI --output URI`."""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.cli import GOES_ON, run_job
from maskrcnn_core.label_config import LabelRun
from maskrcnn_core.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipelines.label_progress import LabelProgress
    from pipelines.labelling import LabelSummary

# Without a terminal a line appears this often at first and twice as rarely each time, up to the longest.
_FIRST_LINE_SECONDS = 5.0
_LONGEST_LINE_SECONDS = 300.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return run_job(LabelRun, run, prog="python -m jobs.label", argv=argv, interrupted=GOES_ON)


def run(settings: LabelRun) -> int:
    """Label with progress on the terminal; 1 if more than `label.max_failed_fraction` of the images failed."""
    summary = label_with_progress(settings)
    print("\n".join(summary_lines(settings, summary)), flush=True)
    return exit_code(settings, summary)


def label_with_progress(settings: LabelRun) -> "LabelSummary":
    """Label with a progress bar, or with lines of text where stdout is no terminal."""
    from pipelines.labelling import label

    with progress(settings.label.record) as show:
        return label(settings, show)


def exit_code(settings: LabelRun, summary: "LabelSummary") -> int:
    """0, or 1 if too many images failed."""
    return int(summary.failed > settings.label.max_failed_fraction * summary.images)


def summary_lines(settings: LabelRun, summary: "LabelSummary") -> list[str]:
    """What came out, what failed, and the next commands."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(summary.statuses.items(), key=_ok_first))
    kind = settings.label.record
    if summary.skipped_because_done:
        lines = [f"already finished: {summary.images} images ({counts}), {summary.detections} {kind}; nothing to do"]
    else:
        earlier = summary.images - summary.labelled_now
        resumed = f", {earlier} of them by earlier starts" if earlier else ""
        lines = [
            f"finished: {summary.images} images ({counts}), {summary.detections} {kind}{resumed}",
            f"{summary.labelled_now} images in {summary.seconds:.0f} s "
            f"({summary.images_per_second:.2f} images/s without start-up; "
            f"detectors waited for images {summary.waiting_share:.0%} of their time)",
        ]
    lines.append(f"labels: {summary.labels}")
    if summary.failed:
        shown = len(summary.failures)
        lines.append(f"failed images{f' (first {shown} of {summary.failed})' if shown < summary.failed else ''}:")
        lines += [f"  {failure.status}: {failure.uri}: {failure.error}" for failure in summary.failures]
        if not settings.label.retry_failed:
            lines.append("try them again with the same command and --label.retry_failed true")
        if exit_code(settings, summary):
            lines.append(
                f"{summary.failed / summary.images:.1%} of the images failed, more than label.max_failed_fraction "
                f"({settings.label.max_failed_fraction:.1%})"
            )
    return [printable(line) for line in lines + _next_commands(settings)]


def _ok_first(entry: tuple[str, int]) -> tuple[bool, int, str]:
    status, count = entry
    return status != "ok", -count, status


def _next_commands(settings: LabelRun) -> list[str]:
    """Commands that run as they stand here."""
    output = shlex.quote(settings.output)
    commands = [f"python -m jobs.verify --labels {output}"]
    if settings.images.lower().endswith(".json"):
        commands.append(f"python -m jobs.evaluate --labels {output} --annotations {shlex.quote(settings.images)}")
    if settings.label.record == "detections":
        page = shlex.quote(f"{settings.output.rstrip('/')}/report")
        commands.append(f"python -m jobs.report --labels {output} --output {page}")
    return ["next:", *(f"  {command}" for command in commands)]


@contextmanager
def progress(kind: str) -> "Iterator[Callable[[LabelProgress], None]]":
    """What shows the progress of labelling inside the block: a bar, or lines of text where stdout is no terminal."""
    if not sys.stdout.isatty():
        yield PlainProgress(kind=kind)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"))
    with Progress(*columns) as progress:
        task = progress.add_task("label", total=None, numbers="workers start ...")

        def show(state: "LabelProgress") -> None:
            numbers = progress_numbers(state, kind) if state.images_per_second else "workers start ..."
            progress.update(task, completed=state.done, total=state.images, numbers=numbers)

        yield show


class PlainProgress:
    """Progress as lines of `name=value` pairs, which people and log collectors read alike, ever more rarely."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, kind: str = "detections") -> None:
        self._clock, self._kind = clock, kind
        self._wait = _FIRST_LINE_SECONDS
        self._next = clock() + self._wait
        self._shown = -1

    def __call__(self, state: "LabelProgress") -> None:
        """Print a line if it is time for one and something is new."""
        if self._clock() < self._next or state.done == self._shown:
            return
        print(log_line(state, self._kind), flush=True)
        self._shown = state.done
        self._wait = min(2 * self._wait, _LONGEST_LINE_SECONDS)
        self._next = self._clock() + self._wait


def log_line(state: "LabelProgress", kind: str = "detections") -> str:
    """Progress as `name=value` pairs; times in seconds."""
    rate = state.images_per_second
    pairs: dict[str, object] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "event": "progress" if rate else "starting",
        "done": state.done,
        "images": state.images,
        kind: state.detections,
        "failed": state.failed,
    }
    if rate:
        left = round((state.images - state.done) / rate)
        pairs |= {"images_per_second": f"{rate:.2f}", "waiting": f"{state.waiting_share:.3f}", "seconds_left": left}
        pairs["detections_per_second"] = f"{state.detections_per_second:.1f}"
    return " ".join(f"{name}={value}" for name, value in pairs.items())


def progress_numbers(state: "LabelProgress", kind: str = "detections") -> str:
    """Rate, detections (or what `kind` calls them), failures, the share of time that detectors stand still for want of
    images, and time left in one line."""
    rate = state.images_per_second
    left = f"  left {_duration((state.images - state.done) / rate)}" if rate else ""
    failed = f"  {state.failed} failed" if state.failed else ""
    waiting = f"  waiting {state.waiting_share:.0%}" if rate else ""
    return f"{rate:.2f} images/s  {state.detections} {kind}{failed}{waiting}{left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


if __name__ == "__main__":
    sys.exit(main())
