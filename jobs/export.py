"""Write labels in another tool's format: `python -m jobs.export --labels URI --format NAME --output URI`."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import run_job
from maskrcnn_core.export.formats import Written, format_meanings, load_format
from maskrcnn_core.printable import printable
from pipelines.exporting.config import ExportRun

if TYPE_CHECKING:
    from pipelines.exporting.run import ExportSummary


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    formats = "; ".join(f"{name} = {meaning}" for name, meaning in format_meanings().items())
    return run_job(ExportRun, run, prog="python -m jobs.export", argv=argv, closing=f"Formats: {formats}.")


def run(settings: ExportRun) -> int:
    """Export, then say what was written, what was left out, and what to do with it."""
    from pipelines.exporting.run import export

    print("\n".join(summary_lines(settings, export(settings))))
    return 0


def summary_lines(settings: ExportRun, summary: "ExportSummary") -> list[str]:
    """What was written, what was left out, and how to use it."""
    lines = [f"exported: {summary.images} images, {summary.objects} objects"]
    if summary.failed:
        lines.append(f"left out: {summary.failed} images that failed")
    if summary.left_out:
        lines.append(f"left out: {summary.left_out} objects whose mask has no pixel or whose box has no extent")
    if summary.undrawn:
        lines.append(f"left out: {summary.undrawn} objects whose masks are too large, or of too many pieces, to draw")
    if summary.renamed:
        lines.append(
            f"renamed: {summary.renamed} images whose names no file can have below {settings.output}; link them with "
            "--export.link_images true, or by images.txt, whose lines are in the order of the label rows"
        )
    written = Written(summary.files, summary.root or "IMAGES", has_images=settings.export.link_images)
    use = load_format(settings.format).use(written)
    return [printable(line) for line in (*lines, *(f"written: {uri}" for uri in summary.files), f"use: {use}")]


if __name__ == "__main__":
    sys.exit(main())
