"""Score labels against COCO annotations: `python -m jobs.evaluate --labels URI --annotations FILE [--output JSON]`.

With `--checkpoint` the annotated images are labelled first; with `--compare` a second run's labels are set beside; with
`--report DIR` a page shows it all."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from jobs.cli import run_job
from jobs.summaries import coverage_lines, print_recall
from jobs.terminal import labelling_progress, new_table, plain_console, print_report, score_text, show_note, text_cell
from maskrcnn_core.printable import printable
from pipelines.evaluation.config import EvaluateRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from maskrcnn_core.evaluation.analysis import CategoryDifference, ErrorAnalysis, KindDetails, RunDifference
    from maskrcnn_core.evaluation.coco import CocoScores
    from pipelines.evaluation.run import EvaluationSummary

_PROG = "python -m jobs.evaluate"
_SHOWN_AT_EACH_END = 10
_COLUMN_TITLES = {"bbox": "box", "segm": "mask", "keypoints": "keypoints"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_job(EvaluateRun, lambda run: _evaluate_in_storage(run, arguments), prog=_PROG, argv=arguments)


def _evaluate_in_storage(run: EvaluateRun, arguments: Sequence[str]) -> int:
    """All that is read and written between the calls of the pipeline lies there too."""
    from pipelines.storage.s3_settings import applied

    with applied(run.storage):
        return _evaluate(run, arguments)


def _evaluate(run: EvaluateRun, arguments: Sequence[str]) -> int:
    # Imported here, so that --help and mistakes in settings answer at once.
    from pipelines.evaluation.proposals import evaluate_proposals, holds_proposals
    from pipelines.evaluation.run import check_output, evaluate, write_numbers

    check_output(run)
    if not run.checkpoint and not run.labels.lower().endswith(".json") and holds_proposals(run.labels):
        recall = evaluate_proposals(run)
        print_recall(recall)
        if run.output:
            write_numbers(run.output, recall)
    else:
        with _labels(run) as labelled:
            summary = _evaluate_with_progress(labelled) if labelled.checkpoint else evaluate(labelled)
            print_scores(summary.scores)
            print_details(summary)
            sys.stdout.flush()  # whatever becomes of the files
            if run.output:
                write_numbers(run.output, summary)
            if run.report:
                _write_report(labelled, summary, arguments)
    if run.output:
        print(printable(f"All numbers: {run.output}"))
    return 0


@contextmanager
def _labels(run: EvaluateRun) -> "Iterator[EvaluateRun]":
    """The run itself; for a report, its labels are made first and are there until the page is written."""
    if not run.report:
        yield run
        return
    from pipelines.evaluation.run import labels_of
    from pipelines.report.run import on_labels  # loads torch, which scoring alone does without

    if not run.checkpoint:
        yield on_labels(run, run.labels)
        return
    with ExitStack() as stack:
        with labelling_progress("detections") as show:
            labels = stack.enter_context(labels_of(run, show, show_note))
        yield on_labels(run, labels)


def _write_report(run: EvaluateRun, summary: "EvaluationSummary", arguments: Sequence[str]) -> None:
    from pipelines.report.run import report_evaluation

    print_report(report_evaluation(run, summary, f"{_PROG} {shlex.join(arguments)}"))


def _evaluate_with_progress(run: EvaluateRun) -> "EvaluationSummary":
    from pipelines.evaluation.run import evaluate

    with labelling_progress("detections") as show:
        return evaluate(run, show, show_note)


def print_scores(scores: "CocoScores") -> None:
    """The COCO numbers and the AP of each category as tables, and what was and was not scored."""
    console = plain_console()
    console.print(_stats_table(scores))
    if "keypoints" in scores.stats:
        console.print(_keypoint_table(scores))
    console.print(_category_table(scores))
    for line in _counts(scores):
        console.print(printable(line), soft_wrap=True)


def print_details(summary: "EvaluationSummary") -> None:
    """What there is beyond the numbers: errors, intervals, the comparison with another run, and notes."""
    console = plain_console()
    if summary.details:
        for iou_type, details in summary.details.kinds.items():
            for line in _detail_lines(details):
                console.print(f"{_COLUMN_TITLES[iou_type].capitalize()}: {line}", soft_wrap=True)
        for iou_type, details in summary.details.kinds.items():
            if details.errors:
                console.print(_error_table(_COLUMN_TITLES[iou_type], details.errors))
    if summary.comparison:
        for iou_type, difference in summary.comparison.kinds.items():
            console.print(_comparison_table(_COLUMN_TITLES[iou_type], difference))
    for note in summary.notes:
        console.print(printable(f"Note: {note}."), soft_wrap=True)


def _detail_lines(details: "KindDetails") -> list[str]:
    interval, calibration = details.interval, details.calibration
    lines = [
        f"AP {score_text(interval.value)}, {interval.level:.0%} interval {score_text(interval.low)} to "
        f"{score_text(interval.high)} ({interval.samples} bootstrap samples of the images).",
        f"scores are off by {calibration.ece:.3f} on average as probabilities of being right at IoU 0.50.",
    ]
    if details.boundary:
        lines.append(f"boundary AP {score_text(details.boundary[0])}.")
    if details.federated:
        named = zip(details.federated.names, details.federated.stats, strict=True)
        lines.append("LVIS " + ", ".join(f"{name} {score_text(value)}" for name, value in named) + ".")
    return lines


def _error_table(title: str, errors: "ErrorAnalysis") -> "Table":
    table = new_table(f"What errors cost, {title} AP50 {score_text(errors.ap)}", "", "errors", "AP50 lost")
    for error, cost in sorted(errors.ap_costs.items(), key=lambda entry: -entry[1]):
        table.add_row(error, str(errors.counts[error]), f"{cost:.3f}")
    table.add_row("all wrong detections", "", f"{errors.false_positive_cost:.3f}")
    table.add_row("all objects not found", "", f"{errors.false_negative_cost:.3f}")
    return table


def _comparison_table(title: str, difference: "RunDifference") -> "Table":
    """AP of both runs, categories with the largest differences first."""
    table = new_table(
        f"Comparison, {title} AP",
        "",
        "first",
        "second",
        "difference",
        f"{difference.difference.level:.0%} interval",
        "p",
    )
    ranked = sorted(difference.categories, key=lambda one: -abs(one.difference.value))[: 2 * _SHOWN_AT_EACH_END]
    rows: list[tuple[str, RunDifference | CategoryDifference]] = [("all categories", difference)]
    for name, one in [*rows, *((one.name, one) for one in ranked)]:
        interval = one.difference
        bounds = f"{interval.low:+.3f} to {interval.high:+.3f}"
        table.add_row(
            text_cell(name),
            score_text(one.first),
            score_text(one.second),
            f"{interval.value:+.3f}",
            bounds,
            f"{one.p_value:.3f}",
        )
    return table


def _stats_table(scores: "CocoScores") -> "Table":
    """The 12 numbers, boxes and masks side by side."""
    from maskrcnn_core.evaluation.coco import STAT_NAMES

    columns = {_COLUMN_TITLES[iou_type]: values for iou_type, values in scores.stats.items() if iou_type != "keypoints"}
    table = new_table("COCO scores", "", *columns)
    for index, name in enumerate(STAT_NAMES):
        table.add_row(name, *(score_text(values[index]) for values in columns.values()))
    return table


def _keypoint_table(scores: "CocoScores") -> "Table":
    """The 10 numbers of keypoints, which are not the 12 of boxes."""
    from maskrcnn_core.evaluation.coco import KEYPOINT_STAT_NAMES

    table = new_table("COCO keypoint scores", "", "keypoints")
    for name, value in zip(KEYPOINT_STAT_NAMES, scores.stats["keypoints"], strict=True):
        table.add_row(name, score_text(value))
    return table


def _category_table(scores: "CocoScores") -> "Table":
    """AP of each category, best first; the middle is left out where there are many."""
    iou_types = list(scores.stats)
    ranking = "segm" if "segm" in iou_types else "bbox"  # every category has them, unlike keypoints
    ranked = sorted(scores.per_category, key=lambda category: (-category.ap[ranking], category.name))
    ranked = [category for category in ranked if category.annotations]
    hidden = max(0, len(ranked) - 2 * _SHOWN_AT_EACH_END)
    table = new_table("AP per category", "", *(_COLUMN_TITLES[iou_type] for iou_type in iou_types), "objects")
    for rank, category in enumerate(ranked):
        if hidden and rank == _SHOWN_AT_EACH_END:
            table.add_row(f"({hidden} more)", *("" for _ in iou_types), "")
        if not hidden or rank < _SHOWN_AT_EACH_END or rank >= len(ranked) - _SHOWN_AT_EACH_END:
            table.add_row(
                text_cell(category.name),
                *(score_text(category.ap[iou_type]) for iou_type in iou_types),
                str(category.annotations),
            )
    return table


def _counts(scores: "CocoScores") -> list[str]:
    """What was scored and what was not, a line each."""
    coverage = scores.coverage
    lines = [f"{scores.detections} detections and {scores.annotations} annotated objects in {coverage.images} images."]
    lines += coverage_lines(coverage)
    if scores.unknown_categories:
        count, names = sum(scores.unknown_categories.values()), ", ".join(sorted(scores.unknown_categories)[:5])
        lines.append(
            f"{count} detections are of categories that the annotation file does not have ({names}); left out."
        )
    return lines + [
        f"{_COLUMN_TITLES[iou_type].capitalize()} not scored: {why}." for iou_type, why in scores.skipped.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
