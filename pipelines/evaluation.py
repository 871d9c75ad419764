"""Scoring of Parquet labels against a COCO annotation file."""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskrcnn_core.data.proposals import is_proposals_schema
from maskrcnn_core.errors import AnnotationError, StorageError
from maskrcnn_core.evaluate_config import EvaluateRun
from maskrcnn_core.evaluation.coco import KEYPOINT_STAT_NAMES, STAT_NAMES, CocoScores, evaluate_coco
from maskrcnn_core.evaluation.results import Coverage
from maskrcnn_core.inference.records import SCHEMA_VERSION
from pipelines import storage
from pipelines.label_files import label_files

_COLUMNS = ("image_id", "width", "height", "status", "detections", "model")
_VERSION_KEY = b"maskrcnn.schema_version"


@dataclass(frozen=True)
class EvaluationSummary:
    """What one evaluation found.

    Attributes:
        run: what was asked for.
        scores: the numbers.
        models: fingerprints of the models that made the label rows, sorted.
    """

    run: EvaluateRun
    scores: CocoScores
    models: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The summary as plain JSON values; numbers in full precision, -1 where not defined."""
        scores = self.scores
        return {
            "stats": {kind: list(values) for kind, values in scores.stats.items()},
            "names": list(STAT_NAMES),
            "keypoint_names": list(KEYPOINT_STAT_NAMES),
            "per_category": [
                {"id": category.id, "name": category.name, "annotations": category.annotations, **category.ap}
                for category in scores.per_category
            ],
            "images": coverage_counts(scores.coverage),
            "annotations": scores.annotations,
            "detections": scores.detections,
            "skipped": dict(scores.skipped),
            "unknown_categories": dict(scores.unknown_categories),
            "engine": self.run.evaluate.engine,
            "max_detections": self.run.evaluate.max_detections,
            "source": {"labels": self.run.labels, "annotations": self.run.annotations, "models": list(self.models)},
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


def evaluate(run: EvaluateRun) -> EvaluationSummary:
    """Score the labels of a run, and write the numbers as JSON where `run.output` says so.

    Raises:
        StorageError: labels or annotations are missing, are not what they should be, or the output cannot be written.
        AnnotationError: the annotations are wrong, or labels and annotations do not belong together.
    """
    check_output(run)
    annotations = read_annotations(run.annotations)
    labels = read_labels(run.labels)
    settings = run.evaluate
    try:
        _require_polygons(annotations)
        scores = evaluate_coco(
            annotations,
            labels,
            max_detections=settings.max_detections,
            engine=settings.engine,
            keypoint_sigmas=settings.keypoint_sigmas or None,
        )
    except AnnotationError as error:
        raise AnnotationError(f"scoring {run.labels} against {run.annotations}: {error}") from error
    summary = EvaluationSummary(run, scores, tuple(sorted(set(labels.column("model").to_pylist()))))
    if run.output:
        storage.write_bytes_atomically(run.output, json.dumps(summary.to_json(), indent=2).encode() + b"\n")
    return summary


def check_output(run: EvaluateRun) -> None:
    """Make sure, before any work, that the numbers can be written where they are wanted.

    Raises:
        StorageError: a folder is there.
    """
    if run.output and storage.is_folder(run.output):
        raise StorageError(f"{run.output}: output is a folder; expected the name of a JSON file")


def _require_polygons(annotations: dict[str, Any]) -> None:
    """pycocotools takes a polygon of four numbers for a box, and fails; hotcoco takes it for an empty mask."""
    entries = annotations.get("annotations")
    for annotation in entries if isinstance(entries, list) else ():
        polygons = annotation.get("segmentation") if isinstance(annotation, dict) else None
        if isinstance(polygons, list) and not all(isinstance(p, list) and len(p) >= 6 for p in polygons):
            raise AnnotationError(
                f"annotation {annotation.get('id')}: a polygon of fewer than 6 numbers, expected x, y of at least 3 "
                "points; correct the annotation or remove it"
            )


def read_annotations(uri: str) -> dict[str, Any]:
    """A COCO JSON file.

    Raises:
        StorageError: no such file.
        AnnotationError: it is not a JSON object.
    """
    content = storage.read_bytes(uri)
    try:
        annotations = json.loads(content)
    except ValueError as error:
        raise AnnotationError(f"{uri}: not JSON ({error}); expected a COCO instances file") from error
    if not isinstance(annotations, dict):
        raise AnnotationError(f"{uri}: holds a {type(annotations).__name__}; expected a COCO instances object")
    return annotations


def read_labels(uri: str) -> pa.Table:
    """The columns of label records that scoring needs, from `label_files(uri)`.

    Raises:
        StorageError: a file is not Parquet, lacks a column, or has another version of the schema.
    """
    return pa.concat_tables([_read_label_file(file) for file in label_files(uri)])


def _read_label_file(uri: str) -> pa.Table:
    filesystem, path = storage.filesystem_and_path(uri)
    try:
        with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
            schema = file.schema_arrow
            if is_proposals_schema(schema):
                raise StorageError(
                    f"{uri}: holds proposals, expected detections; label without --label.record proposals "
                    "(jobs.evaluate scores proposals as well)"
                )
            missing = [name for name in _COLUMNS if name not in schema.names]
            if missing:
                raise StorageError(f"{uri}: not label records: column {missing[0]!r} is missing")
            version = (schema.metadata or {}).get(_VERSION_KEY, SCHEMA_VERSION.encode()).decode()
            if version != SCHEMA_VERSION:
                raise StorageError(f"{uri}: label schema version {version}; this release reads {SCHEMA_VERSION}")
            table = file.read(columns=list(_COLUMNS))
    except (OSError, pa.ArrowInvalid) as error:
        raise StorageError(f"{uri}: cannot be read as Parquet: {error}") from error
    return table.replace_schema_metadata(None)
