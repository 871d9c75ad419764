"""What several commands say of their results, in the same words."""

from typing import TYPE_CHECKING

from jobs.terminal import new_table, plain_console, score_text
from maskrcnn_core.printable import printable

if TYPE_CHECKING:
    from maskrcnn_core.evaluation.results import Coverage
    from pipelines.evaluation.proposals import ProposalEvaluation
    from pipelines.labelling.config import LabelConfig
    from pipelines.labelling.run import LabelSummary

_IDS_SHOWN = 5


def exit_code(label: "LabelConfig", summary: "LabelSummary") -> int:
    """0, or 1 if too many images failed."""
    return int(summary.failed > label.max_failed_fraction * summary.images)


def labelling_lines(label: "LabelConfig", summary: "LabelSummary") -> list[str]:
    """What came out, and what failed."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(summary.statuses.items(), key=_ok_first))
    noun = label.record
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
        if not label.retry_failed:
            lines.append("try them again with the same command and --label.retry_failed true")
        if exit_code(label, summary):
            lines.append(
                f"{summary.failed / summary.images:.1%} of the images failed, more than label.max_failed_fraction "
                f"({label.max_failed_fraction:.1%})"
            )
    return [printable(line) for line in lines]


def _ok_first(entry: tuple[str, int]) -> tuple[bool, int, str]:
    status, count = entry
    return status != "ok", -count, status


def print_recall(evaluation: "ProposalEvaluation") -> None:
    """Average recall of proposals as a table, and what was and was not scored."""
    from maskrcnn_core.evaluation.proposals import PROPOSAL_STAT_NAMES

    table = new_table("Average recall of proposals", "", "proposals")
    for name, value in zip(PROPOSAL_STAT_NAMES, evaluation.stats, strict=True):
        table.add_row(name, score_text(value))
    console = plain_console()
    console.print(table)
    coverage = evaluation.coverage
    lines = [
        f"{evaluation.proposals} proposals and {evaluation.annotations} annotated objects in {coverage.images} images."
    ]
    for line in lines + coverage_lines(coverage) + [f"Note: {note}." for note in evaluation.notes]:
        console.print(printable(line), soft_wrap=True)


def coverage_lines(coverage: "Coverage") -> list[str]:
    """Images and rows that do not belong together, a line each."""
    lines = []
    if coverage.unlabelled or coverage.failed:
        count = "are left out" if coverage.left_out else "count as images in which nothing was found"
        ids = [str(image_id) for image_id in coverage.without_labels[:_IDS_SHOWN]]
        more = ", ..." if coverage.unlabelled + coverage.failed > len(ids) else ""
        lines.append(
            f"{coverage.unlabelled} of these images have no label row and {coverage.failed} failed; "
            f"they {count}" + (f" (image ids {', '.join(ids)}{more})." if ids else ".")
        )
    elif coverage.left_out:
        lines.append(f"{coverage.left_out} of these images have no results; they are left out.")
    if coverage.unknown:
        lines.append(
            f"{coverage.unknown} images with labels are not among those of the annotation file; they are left out."
        )
    return lines
