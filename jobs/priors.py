"""Find priors for annotations of one's own: `python -m jobs.priors --annotations FILE [--priors.number N]`."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import run_job
from maskrcnn_core.printable import printable
from pipelines.priors.config import PriorsRun

if TYPE_CHECKING:
    from pipelines.priors.run import PriorsSummary

_SHOWN = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return run_job(PriorsRun, run, prog="python -m jobs.priors", argv=argv)


def run(settings: PriorsRun) -> int:
    """Find the priors, then say what they are and how well they fit."""
    from pipelines.priors.run import find_priors

    summary = find_priors(settings)
    print("\n".join(summary_lines(summary, settings.annotations)))
    if settings.output:
        print(f"all priors: {settings.output}")
    return 0


def summary_lines(summary: "PriorsSummary", annotations: str) -> list[str]:
    """Objects and their mean IoU with the best prior, then the priors, smallest first."""
    config, priors = summary.config, summary.priors
    seen = f"{summary.num_objects:,} objects"
    if priors.num_boxes < summary.num_objects:
        seen += f", of which {priors.num_boxes:,} drawn at random"
    if summary.num_left_out:
        seen += f"; {summary.num_left_out:,} left out (crowds, and boxes outside of their image)"
    lines = [
        printable(f"{annotations}: {seen}"),
        f"{len(priors.values)} priors, mean IoU with the best one {priors.mean_iou:.3f}; input {config.width} x "
        f"{config.height} ({config.fit})",
    ]
    if config.kind == "sizes":
        lines.append(f"{'width':>8} {'height':>8} {'cells':>15} {'share':>6}")
        for (width, height), (across, down), share in zip(
            priors.values[:_SHOWN], summary.in_cells()[:_SHOWN], priors.shares[:_SHOWN], strict=True
        ):
            lines.append(f"{width:8.1f} {height:8.1f} {across:8.4f},{down:7.4f} {share:6.3f}")
    else:
        lines.append(f"{'x1':>6} {'y1':>6} {'x2':>6} {'y2':>6} {'share':>6}  (fractions of the input)")
        for box, share in zip(priors.values[:_SHOWN], priors.shares[:_SHOWN], strict=True):
            lines.append(" ".join(f"{number:6.3f}" for number in (*box, share)))
    if len(priors.values) > _SHOWN:
        lines.append(f"... and {len(priors.values) - _SHOWN} more")
    elif config.kind == "sizes":
        table = ", ".join(f"[{width:.2f}, {height:.2f}]" for width, height in priors.values)
        lines.append(f"as a setting:\n  --model.dense.anchors.priors '[[{table}]]'")
    return lines


if __name__ == "__main__":
    sys.exit(main())
