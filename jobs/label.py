"""Label an image collection: `python -m jobs.label --checkpoint URI --images URI --output URI`."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import GOES_ON, run_job
from jobs.terminal import labelling_progress, show_note
from maskrcnn_core.printable import printable
from pipelines.labelling.config import LabelRun

if TYPE_CHECKING:
    from pipelines.labelling.run import LabelSummary


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
    from pipelines.labelling.run import label

    with labelling_progress(settings.label.record) as show:
        return label(settings, show, on_note=show_note)


def exit_code(settings: LabelRun, summary: "LabelSummary") -> int:
    """0, or 1 if too many images failed."""
    return int(summary.failed > settings.label.max_failed_fraction * summary.images)


def summary_lines(settings: LabelRun, summary: "LabelSummary") -> list[str]:
    """What came out, what failed, and the next commands."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(summary.statuses.items(), key=_ok_first))
    noun = settings.label.record
    if summary.skipped_because_done:
        lines = [f"already finished: {summary.images} images ({counts}), {summary.detections} {noun}; nothing to do"]
    else:
        earlier = summary.images - summary.labelled_now
        resumed = f", {earlier} of them by earlier starts" if earlier else ""
        lines = [
            f"finished: {summary.images} images ({counts}), {summary.detections} {noun}{resumed}",
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


if __name__ == "__main__":
    sys.exit(main())
