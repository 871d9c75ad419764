"""Propose regions without a network: `python -m jobs.propose --images URI --output URI [--propose.method NAME]`.

With `--annotations` the finished proposals are scored: average recall at 10, 100 and 1000."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import GOES_ON, run_job
from jobs.summaries import exit_code, labelling_lines, print_recall
from jobs.terminal import labelling_progress, show_note
from maskrcnn_core.printable import printable
from pipelines.proposing.config import ProposeRun

if TYPE_CHECKING:
    from pipelines.labelling.run import LabelSummary


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return run_job(ProposeRun, run, prog="python -m jobs.propose", argv=argv, interrupted=GOES_ON)


def run(settings: ProposeRun) -> int:
    """Propose with progress on the terminal, then score; 1 if more than `label.max_failed_fraction` failed."""
    from pipelines.proposing.run import propose, require_annotations

    require_annotations(settings)
    with labelling_progress("proposals") as show:
        summary = propose(settings, show, on_note=show_note)
    print("\n".join(summary_lines(settings, summary)), flush=True)
    if settings.annotations:
        from pipelines.evaluation.config import EvaluateRun
        from pipelines.evaluation.proposals import evaluate_proposals

        scoring = EvaluateRun(settings.output, settings.annotations, storage=settings.storage, cluster=settings.cluster)
        print_recall(evaluate_proposals(scoring))
    return exit_code(settings.label, summary)


def summary_lines(settings: ProposeRun, summary: "LabelSummary") -> list[str]:
    """What came out, what failed, and the next commands."""
    lines = labelling_lines(settings.labelling().label, summary)
    return lines + [printable(line) for line in _next_commands(settings)]


def _next_commands(settings: ProposeRun) -> list[str]:
    output, images = shlex.quote(settings.output), shlex.quote(settings.images)
    commands = [f"python -m jobs.verify --labels {output}"]
    if settings.images.lower().endswith(".json") and not settings.annotations:
        commands.append(f"python -m jobs.evaluate --labels {output} --annotations {images}")
    commands.append(f"python -m jobs.train --data.train.proposals {output} --model.dense.enabled false ...")
    return ["next:", *(f"  {command}" for command in commands)]


if __name__ == "__main__":
    sys.exit(main())
