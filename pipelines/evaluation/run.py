"""Scoring of labels against a COCO annotation file: read into shards, score them, merge, and write the numbers."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from maskrcnn_core.data.coco.conversion import SCORING
from maskrcnn_core.data.coco.entry_faults import FaultList
from maskrcnn_core.data.coco.json_text import without_garbage_collection
from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.analyse import build_comparison, build_details
from maskrcnn_core.evaluation.analysis import EvaluationDetails, RunComparison
from maskrcnn_core.evaluation.annotations import Annotations, asked_of
from maskrcnn_core.evaluation.coco import KEYPOINT_STAT_NAMES, STAT_NAMES, CocoScores, finish_scores
from maskrcnn_core.evaluation.coco_json_results import ResultsLayout
from maskrcnn_core.evaluation.match_counts import notes_of
from maskrcnn_core.evaluation.results import Coverage
from maskrcnn_core.evaluation.scoring_states import Engine
from maskrcnn_core.evaluation.shards import ScoringPlan, ShardScores
from pipelines import storage
from pipelines.annotations.columns import annotation_columns
from pipelines.evaluation.config import EvaluateRun
from pipelines.evaluation.inputs import Keep, ScoringInputs, is_results_file, read_inputs
from pipelines.evaluation.shards import Shard, ShardAnnotations, score_all
from pipelines.labelling.config import LabelRun
from pipelines.labels.files import label_file_sizes
from pipelines.labels.parts import HERE, MOST_FILES_HERE, Readers, readers_on_cluster
from pipelines.storage.s3_settings import applied, settings_environment
from pipelines.storage.writable import require_writable

if TYPE_CHECKING:
    from pipelines.labelling.progress import LabelProgress

# Less than this one process scores in the time that a cluster needs to start.
_SMALL_BYTES = 1 << 31


@dataclass(frozen=True)
class EvaluationSummary:
    """What one evaluation found.

    Attributes:
        run: what was asked for.
        scores: the numbers.
        models: fingerprints of the models that made the label rows, sorted.
        engine: that was used.
        notes: what else a reader of the numbers should know.
        details: beyond the 12 numbers, where asked for.
        comparison: with the second run's labels, where given.
    """

    run: EvaluateRun
    scores: CocoScores
    models: tuple[str, ...]
    engine: Engine = "hotcoco"
    notes: tuple[str, ...] = ()
    details: EvaluationDetails | None = None
    comparison: RunComparison | None = None

    def to_json(self) -> dict[str, Any]:
        """The summary as plain JSON values; numbers in full precision, -1 where not defined."""
        scores = self.scores
        return {
            "stats": {iou_type: list(values) for iou_type, values in scores.stats.items()},
            "names": list(STAT_NAMES),
            "keypoint_names": list(KEYPOINT_STAT_NAMES),
            "per_category": [
                {"id": category.id, "name": category.name, "annotations": category.annotations, **category.ap}
                for category in scores.per_category
            ],
            "images": coverage_counts(scores.coverage),
            "images_left_out": scores.coverage.left_out,
            "images_without_labels": list(scores.coverage.without_labels),
            "annotations": scores.annotations,
            "detections": scores.detections,
            "skipped": dict(scores.skipped),
            "unknown_categories": dict(scores.unknown_categories),
            "notes": list(self.notes),
            "engine": self.engine,
            "max_detections": self.run.evaluate.max_detections,
            "source": {"labels": self.run.labels, "annotations": self.run.annotations, "models": list(self.models)},
            **({} if self.run.checkpoint is None else {"checkpoint": self.run.checkpoint}),
            **({} if self.details is None else {"details": self.details.to_json()}),
            **({} if self.comparison is None else {"comparison": self.comparison.to_json()}),
        }


def coverage_counts(coverage: Coverage) -> dict[str, int]:
    """How labels and annotated images fit together, for the JSON of a scoring."""
    return {
        "annotated": coverage.images,
        "labelled": coverage.labelled,
        "failed": coverage.failed,
        "unlabelled": coverage.unlabelled,
        "unknown": coverage.unknown,
    }


def evaluate(
    run: EvaluateRun,
    on_progress: "Callable[[LabelProgress], None] | None" = None,
    on_note: "Callable[[str], None]" = lambda _: None,
) -> EvaluationSummary:
    """Score the labels of a run; `write_numbers` writes the summary where `run.output` says so.

    Where `run.checkpoint` says so, the annotated images are labelled first. Large labels, and those of a run with a
    cluster, are scored as Ray tasks; small ones in this process, without starting Ray.

    Args:
        run: what to score.
        on_progress, on_note: called while images are labelled, as of `labelling.label`.

    Raises:
        ConfigError: keypoint sigmas of another number than the keypoints; or as `labelling.label`.
        CheckpointError: as `labelling.label`.
        StorageError: labels or annotations are missing, are not what they should be, or the output cannot be written.
        AnnotationError: the annotations are wrong, or labels and annotations do not belong together.
    """
    with applied(run.storage):
        check_output(run)
        with labels_of(run, on_progress, on_note) as labels:
            return _score_labels(run, labels)


class Numbers(Protocol):
    """The summary of an evaluation."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        ...


def write_numbers(output: str, summary: Numbers) -> None:
    """Write a summary as a JSON file; apart from `evaluate`, so that the numbers can be shown first.

    Raises:
        StorageError: the file cannot be written.
    """
    storage.write_bytes_atomically(output, json.dumps(summary.to_json(), indent=2).encode() + b"\n")


@contextmanager
def labels_of(
    run: EvaluateRun,
    on_progress: "Callable[[LabelProgress], None] | None" = None,
    on_note: "Callable[[str], None]" = lambda _: None,
) -> Iterator[str]:
    """The labels of a run, inside the block: those that are there, or those that its checkpoint makes.

    Raises:
        ConfigError, CheckpointError, StorageError, AnnotationError: as `labelling.label`.
    """
    if not run.checkpoint:
        yield run.labels
        return
    from pipelines.labelling.run import label  # heavy, and not needed where labels are there

    with tempfile.TemporaryDirectory() as scratch:
        output = run.labels or scratch
        wanted = LabelRun(
            run.checkpoint,
            run.annotations,
            output,
            image_root=run.images,
            label=run.label,
            storage=run.storage,
            cluster=run.cluster,
        )
        label(wanted, on_progress, on_note=on_note)
        yield output


def _score_labels(run: EvaluateRun, labels: str) -> EvaluationSummary:
    settings = run.evaluate
    with _workforce(run, labels) as workforce:
        plan, notes, inputs, merged = _merged_shards(run, labels, workforce)
        scores = _finish(run, labels, plan, merged, inputs)
        others = None
        if run.compare:
            other_plan, other_notes, _, others = _merged_shards(run, run.compare, workforce)
            told = (*other_notes, *notes_of(others.detected, other_plan.category_ids))
            notes += tuple(f"{run.compare}: {note}" for note in told if note not in notes)
    notes += notes_of(merged.detected, plan.category_ids)
    details = None
    if settings.details:
        details = build_details(plan, merged, scores.tables, settings.bootstrap_samples)
    comparison = None if others is None else build_comparison(plan, merged, others, settings.bootstrap_samples)
    return EvaluationSummary(run, scores, inputs.models, plan.engine, (*notes, *scores.notes), details, comparison)


def _merged_shards(
    run: EvaluateRun, labels: str, workforce: "_Workforce"
) -> tuple[ScoringPlan, tuple[str, ...], ScoringInputs, ShardScores]:
    settings = run.evaluate
    try:
        inputs = read_inputs(
            labels,
            run.annotations,
            settings.images_per_shard,
            settings.images == "labelled",
            workforce.keep,
            workforce.readers,
        )
        plan = _plan(run, inputs)
        merged = workforce.score_shards(plan, inputs.shards, inputs.layout)
        return plan, inputs.notes, inputs, replace(merged, faults=inputs.faults + merged.faults)
    except AnnotationError as error:
        reason = str(error).removeprefix(f"{run.annotations}: ")  # which is named already
        raise AnnotationError(f"scoring {labels} against {run.annotations}: {reason}") from error


def _finish(run: EvaluateRun, labels: str, plan: ScoringPlan, merged: ShardScores, inputs: ScoringInputs) -> CocoScores:
    try:
        return finish_scores(plan, merged, inputs.coverage)
    except AnnotationError as error:
        raise AnnotationError(f"scoring {labels} against {run.annotations}: {error}") from error


@dataclass(frozen=True)
class _Workforce:
    """Who scores: this process, or a cluster.

    Attributes:
        keep: where text and annotations of shards are kept.
        score_shards: what scores them.
        readers: of label files.
    """

    keep: Keep
    score_shards: Callable[[ScoringPlan, Sequence[Shard], ResultsLayout | None], ShardScores]
    readers: Readers


@contextmanager
def _workforce(run: EvaluateRun, labels: str) -> Iterator[_Workforce]:
    """That of a scoring, inside the block."""
    if not _is_distributed(run, labels):
        yield _Workforce(_kept_here, score_all, HERE)
        return
    # Imported here: loading Ray takes longer than scoring a small set.
    from pipelines.cluster.connection import connect
    from pipelines.evaluation.tasks import kept_on_ray, score_on_ray

    with connect(run.cluster, environment=settings_environment(run.storage)):
        yield _Workforce(kept_on_ray, score_on_ray, readers_on_cluster())


def _kept_here(piece: Any) -> Any:
    """Shards that this process scores hold what they need themselves; Ray's tasks find it in Ray's store."""
    return piece


def _plan(run: EvaluateRun, inputs: ScoringInputs) -> ScoringPlan:
    settings = run.evaluate
    return ScoringPlan(
        inputs.categories,
        max_detections=settings.max_detections,
        engine=settings.engine,
        sigmas=settings.keypoint_sigmas or None,
        min_score=settings.details_min_score if settings.details or run.compare else None,
        boundary=settings.details,
        federated=settings.details and inputs.federated,
    )


def _is_distributed(run: EvaluateRun, labels: str) -> bool:
    wanted = run.evaluate.distributed
    if wanted != "auto":
        return wanted == "always"
    if run.cluster.address or os.environ.get("RAY_ADDRESS"):
        return True
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return True
    if is_results_file(labels):
        return storage.size(labels) > _SMALL_BYTES
    sizes = label_file_sizes(labels)
    return sum(sizes.values()) > _SMALL_BYTES or len(sizes) > MOST_FILES_HERE


def check_output(run: EvaluateRun) -> None:
    """Make sure, before any work, that the numbers can be written where they are wanted.

    Raises:
        StorageError: a folder is there, or no file can be written there.
    """
    if run.output:
        require_writable(run.output)


def load_annotations(uri: str) -> Annotations:
    """The clean entries of annotations, all at once.

    Raises:
        StorageError: no such file.
        AnnotationError: it is no COCO instances JSON, or its ids are wrong.
    """
    with without_garbage_collection():
        columns = annotation_columns(uri, SCORING)
        images = {entry["id"]: entry for entry in columns.image_entries()}
        faults, info = FaultList(), columns.info
        entries = ShardAnnotations(columns, np.arange(len(columns))).read(images, asked_of(info.categories), faults)
        annotations = Annotations(images, info.categories, list(entries), info.faults, info.has_id_zero)
        return replace(annotations, faults=info.faults + faults.faults())
