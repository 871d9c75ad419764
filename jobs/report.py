"""Show labels as one HTML page: `python -m jobs.report --labels DIR --output DIR [--images DIR]`."""

import shlex
import sys
from collections.abc import Sequence

from jobs.cli import run_job
from jobs.terminal import print_report
from pipelines.report.config import ReportRun

_PROG = "python -m jobs.report"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_job(ReportRun, lambda run: _report(run, arguments), prog=_PROG, argv=arguments)


def _report(run: ReportRun, arguments: Sequence[str]) -> int:
    # Imported here, so that --help and mistakes in settings answer at once.
    from pipelines.report.run import write_report

    print_report(write_report(run, command=f"{_PROG} {shlex.join(arguments)}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
