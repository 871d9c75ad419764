"""Label an image collection: `python -m jobs.label --checkpoint URI --images URI --output URI`."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import GOES_ON, run_job
from jobs.summaries import exit_code, labelling_lines
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
    return exit_code(settings.label, summary)


def label_with_progress(settings: LabelRun) -> "LabelSummary":
    """Label with a progress bar, or with lines of text where stdout is no terminal."""
    from pipelines.labelling.run import label

    with labelling_progress(settings.label.record) as show:
        return label(settings, show, on_note=show_note)


def summary_lines(settings: LabelRun, summary: "LabelSummary") -> list[str]:
    """What came out, what failed, and the next commands."""
    lines = labelling_lines(settings.label, summary)
    return lines + [printable(line) for line in _next_commands(settings)]


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
