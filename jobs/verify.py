"""Prove that a labelling run is whole: `python -m jobs.verify --labels URI [--output JSON]`."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import run_job
from maskrcnn_core.printable import printable
from pipelines.verification.config import VerifyRun

if TYPE_CHECKING:
    from maskrcnn_core.records.checks import Offence
    from pipelines.verification.run import VerificationSummary

_SHOWN = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return run_job(VerifyRun, run, prog="python -m jobs.verify", argv=argv)


def run(settings: VerifyRun) -> int:
    """Verify, then say what is there and what is wrong; 1 if anything is."""
    from pipelines.verification.run import verify

    summary = verify(settings)
    print("\n".join(summary_lines(summary)))
    if settings.output:
        print(f"all findings: {settings.output}")
    return int(not summary.passed)


def summary_lines(summary: "VerificationSummary") -> list[str]:
    """Counts, the verdict, and the first offenders of each kind."""
    statuses = ", ".join(f"{count} {status}" for status, count in summary.counts.statuses.items()) or "none"
    noun = summary.kinds[0] if summary.kinds else "detections"
    lines = [
        f"{summary.output}: {summary.rows} rows ({statuses}) in {summary.files} files, {summary.images} images in the "
        "manifest",
        f"{summary.counts.objects} {noun}, {summary.counts.masks} masks; model {', '.join(summary.models) or 'none'}",
    ]
    if summary.unsealed:
        lines.append(
            f"{summary.unsealed} of the files hold no SHA-256 (an earlier release, or another program, wrote them): "
            "their rows are checked, but changed values in them would not show"
        )
    if summary.passed:
        proved = "" if summary.unsealed else ", every file as it was written"
        return [*lines, f"verified: one row for each image, every row well-formed, one model{proved}"]
    lines.append(f"NOT verified: {sum(summary.findings.counts.values())} offences")
    shown = summary.findings.first[:_SHOWN]
    for check, count in summary.findings.counts.items():
        lines.append(f"  {check}: {count}")
        lines += [f"    {_line(offence)}" for offence in shown if offence.check == check]
    return lines


def _line(offence: "Offence") -> str:
    where = "" if offence.image_id is None else f"image {offence.image_id}: "
    file = f" ({offence.file})" if offence.file else ""
    return printable(f"{where}{offence.got}; expected {offence.expected}{file}")


if __name__ == "__main__":
    sys.exit(main())
