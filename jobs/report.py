"""Show labels as one HTML page: `python -m jobs.report --labels DIR --output DIR [--images DIR]`."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import run_job
from maskrcnn_core.printable import printable
from maskrcnn_core.report_config import ReportRun

if TYPE_CHECKING:
    from pipelines.report import ReportSummary

_PROG = "python -m jobs.report"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_job(ReportRun, lambda run: _report(run, arguments), prog=_PROG, argv=arguments)


def _report(run: ReportRun, arguments: Sequence[str]) -> int:
    # Imported here, so that --help and mistakes in settings answer at once.
    from pipelines.report import write_report

    print_report(write_report(run, command=f"{_PROG} {shlex.join(arguments)}"))
    return 0


def print_report(summary: "ReportSummary") -> None:
    """Where the page is, and what is missing on it."""
    size = f"{summary.megabytes:.1f} MB; {summary.images} images, {summary.examples} examples"
    print(printable(f"Report: {summary.page} ({size}); open it in a browser"))
    if summary.left_out:
        print(printable(f"  {summary.left_out}"))


if __name__ == "__main__":
    sys.exit(main())
