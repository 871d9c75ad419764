"""Score labels against COCO annotations:
`python -m jobs.evaluate --labels URI --annotations FILE [--output JSON] [--report DIR]`."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli import run_job
from maskrcnn_core.evaluate_config import EvaluateRun

if TYPE_CHECKING:
    from rich.table import Table

    from maskrcnn_core.evaluation.coco import CocoScores
    from maskrcnn_core.evaluation.results import Coverage
    from pipelines.proposal_evaluation import ProposalEvaluation

_PROG = "python -m jobs.evaluate"
_SHOWN_AT_EACH_END = 10
_COLUMN_TITLES = {"bbox": "box", "segm": "mask", "keypoints": "keypoints"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_job(EvaluateRun, lambda run: _evaluate(run, arguments), prog=_PROG, argv=arguments)


def _evaluate(run: EvaluateRun, arguments: Sequence[str]) -> int:
    # Imported here, so that --help and mistakes in settings answer at once.
    from jobs.report import print_report
    from pipelines.evaluation import evaluate, labels_of
    from pipelines.proposal_evaluation import evaluate_proposals, holds_proposals
    from pipelines.report import on_labels, report_evaluation

    if holds_proposals(run.labels):
        print_recall(evaluate_proposals(run))
    else:
        with labels_of(run) as labels:
            summary = evaluate(on_labels(run, labels))
            print_scores(summary.scores)
            if run.report:
                print_report(report_evaluation(run, labels, summary, f"{_PROG} {shlex.join(arguments)}"))
    if run.output:
        print(f"All numbers: {run.output}")
    return 0


def print_scores(scores: "CocoScores") -> None:
    """The COCO numbers and the AP of each category as tables, and what was and was not scored."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(_stats_table(scores))
    if "keypoints" in scores.stats:
        console.print(_keypoint_table(scores))
    console.print(_category_table(scores))
    for line in _counts(scores):
        console.print(line, soft_wrap=True)


def print_recall(found: "ProposalEvaluation") -> None:
    """Average recall of proposals as a table, and what was and was not scored."""
    from rich.console import Console

    from maskrcnn_core.evaluation.proposals import PROPOSAL_STAT_NAMES

    table = _new_table("Average recall of proposals", "", "proposals")
    for name, value in zip(PROPOSAL_STAT_NAMES, found.stats, strict=True):
        table.add_row(name, _show(value))
    console = Console(highlight=False, markup=False)
    console.print(table)
    coverage = found.coverage
    lines = [f"{found.proposals} proposals and {found.annotations} annotated objects in {coverage.images} images."]
    for line in lines + _coverage_lines(coverage):
        console.print(line, soft_wrap=True)


def _stats_table(scores: "CocoScores") -> "Table":
    """The 12 numbers, boxes and masks side by side."""
    from maskrcnn_core.evaluation.coco import STAT_NAMES

    columns = {_COLUMN_TITLES[kind]: values for kind, values in scores.stats.items() if kind != "keypoints"}
    table = _new_table("COCO scores", "", *columns)
    for index, name in enumerate(STAT_NAMES):
        table.add_row(name, *(_show(values[index]) for values in columns.values()))
    return table


def _keypoint_table(scores: "CocoScores") -> "Table":
    """The 10 numbers of keypoints, which are not the 12 of boxes."""
    from maskrcnn_core.evaluation.coco import KEYPOINT_STAT_NAMES

    table = _new_table("COCO keypoint scores", "", "keypoints")
    for name, value in zip(KEYPOINT_STAT_NAMES, scores.stats["keypoints"], strict=True):
        table.add_row(name, _show(value))
    return table


def _category_table(scores: "CocoScores") -> "Table":
    """AP of each category, best first; the middle is left out where there are many."""
    kinds = list(scores.stats)
    ranking = "segm" if "segm" in kinds else "bbox"  # every category has them, unlike keypoints
    ranked = sorted(scores.per_category, key=lambda category: (-category.ap[ranking], category.name))
    ranked = [category for category in ranked if category.annotations]
    hidden = max(0, len(ranked) - 2 * _SHOWN_AT_EACH_END)
    table = _new_table("AP per category", "", *(_COLUMN_TITLES[kind] for kind in kinds), "objects")
    for place, category in enumerate(ranked):
        if hidden and place == _SHOWN_AT_EACH_END:
            table.add_row(f"({hidden} more)", *("" for _ in kinds), "")
        if not hidden or place < _SHOWN_AT_EACH_END or place >= len(ranked) - _SHOWN_AT_EACH_END:
            table.add_row(category.name, *(_show(category.ap[kind]) for kind in kinds), str(category.annotations))
    return table


def _new_table(title: str, first: str, *numbers: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column(first)
    for number in numbers:
        table.add_column(number, justify="right")
    return table


def _show(value: float) -> str:
    return "-" if value == -1 else f"{value:.3f}"


def _counts(scores: "CocoScores") -> list[str]:
    """What was scored and what was not, a line each."""
    coverage = scores.coverage
    lines = [f"{scores.detections} detections and {scores.annotations} annotated objects in {coverage.images} images."]
    lines += _coverage_lines(coverage)
    if scores.unknown_categories:
        count, names = sum(scores.unknown_categories.values()), ", ".join(sorted(scores.unknown_categories)[:5])
        lines.append(
            f"{count} detections are of categories that the annotation file does not have ({names}); left out."
        )
    return lines + [f"{_COLUMN_TITLES[kind].capitalize()} not scored: {why}." for kind, why in scores.skipped.items()]


def _coverage_lines(coverage: "Coverage") -> list[str]:
    """Images and rows that do not belong together, a line each."""
    lines = []
    if coverage.unlabelled or coverage.failed:
        lines.append(
            f"{coverage.unlabelled} of these images have no label row and {coverage.failed} failed; "
            "they count as images in which nothing was found."
        )
    if coverage.unknown:
        lines.append(f"{coverage.unknown} label rows are of images that the annotation file does not have; left out.")
    return lines


if __name__ == "__main__":
    sys.exit(main())
