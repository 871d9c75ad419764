"""Average recall of Parquet proposals against a COCO annotation file."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.annotations import Annotations
from maskrcnn_core.evaluation.proposals import (
    PROPOSAL_STAT_NAMES,
    RecallCounts,
    annotated_boxes,
    count_recall,
    no_recall,
    proposals_of_rows,
    summarize_recall,
)
from maskrcnn_core.evaluation.results import Coverage
from maskrcnn_core.records.schema import is_proposals_schema
from pipelines import storage
from pipelines.evaluation.config import EvaluateRun
from pipelines.evaluation.inputs import match_wanted
from pipelines.evaluation.run import check_output, coverage_counts, load_annotations
from pipelines.labels.files import LIGHT_COLUMNS, label_files, open_label_file
from pipelines.labels.parts import HERE, Readers, readers_for
from pipelines.labels.wanted_rows import GroupRun, wanted_rows
from pipelines.storage.s3_settings import applied

_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class ProposalEvaluation:
    """What one scoring of proposals found.

    Attributes:
        run: what was asked for.
        stats: the numbers that `PROPOSAL_STAT_NAMES` names; -1 where not defined.
        coverage: which images have proposals.
        annotations: annotated objects, crowd regions not counted.
        proposals: on annotated images, at most 1000 of each.
        models: fingerprints of the models that made the rows, sorted.
        notes: what was left out or mended of annotations.
    """

    run: EvaluateRun
    stats: tuple[float, ...]
    coverage: Coverage
    annotations: int
    proposals: int
    models: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The summary as plain JSON values; numbers in full precision, -1 where not defined."""
        return {
            "stats": {"proposals": list(self.stats)},
            "names": list(PROPOSAL_STAT_NAMES),
            "images": coverage_counts(self.coverage),
            "annotations": self.annotations,
            "proposals": self.proposals,
            "notes": list(self.notes),
            "source": {"labels": self.run.labels, "annotations": self.run.annotations, "models": list(self.models)},
        }


def holds_proposals(uri: str) -> bool:
    """Whether labels are proposals; false for what is no label file: reading it says why.

    Raises:
        StorageError: there are no files.
    """
    filesystem, path = storage.filesystem_and_path(label_files(uri)[0])
    try:
        return is_proposals_schema(pq.read_schema(path, filesystem=filesystem))
    except (OSError, pa.ArrowException, ValueError):
        return False


def evaluate_proposals(run: EvaluateRun) -> ProposalEvaluation:
    """Score the proposals of a run; `evaluation.write_numbers` writes the summary where `run.output` says so.

    The proposals are read a few images at a time: those of a large collection need no more memory than a small one's.

    Raises:
        StorageError: proposals or annotations are missing, are not what they should be, or the output cannot be
            written.
        AnnotationError: the annotations are wrong, or proposals and annotations do not belong together.
    """
    with applied(run.storage):
        return _evaluate_proposals(run)


def _evaluate_proposals(run: EvaluateRun) -> ProposalEvaluation:
    check_output(run)
    annotations = load_annotations(run.annotations)
    files = label_files(run.labels)
    with _readers(run, len(files)) as readers:
        found = wanted_rows(files, annotations.images, _ROWS_AT_ONCE, readers, proposals=True)
    try:
        _, coverage = match_wanted(files, found, annotations.images, proposals=True)
        counts = _count(found.runs, annotations)
    except AnnotationError as error:
        raise AnnotationError(f"scoring {run.labels} against {run.annotations}: {error}") from error
    return ProposalEvaluation(
        run,
        summarize_recall(counts),
        coverage,
        annotations=int(counts.objects[0]),
        proposals=counts.proposals,
        models=tuple(sorted(found.models)),
        notes=annotations.faults.without("mask", "no mask", "keypoints").lines(),
    )


def _readers(run: EvaluateRun, num_files: int) -> AbstractContextManager[Readers]:
    if run.evaluate.distributed == "never":
        return nullcontext(HERE)
    return readers_for(num_files, run.cluster, run.storage)


def _count(runs: Sequence[GroupRun], annotations: Annotations) -> RecallCounts:
    objects = annotated_boxes(annotations)
    counts = no_recall()
    for batch in _batches(runs):
        ids = batch.column("image_id").to_pylist()
        proposals = proposals_of_rows(batch.column("proposals"))
        counts += count_recall(
            (boxes, scores, objects.pop(image_id))
            for image_id, (boxes, scores) in zip(ids, proposals, strict=True)
            if image_id in objects
        )
    nothing = np.empty((0, 4), np.float32), np.empty(0, np.float32)
    return counts + count_recall((*nothing, left) for left in objects.values())


def _batches(runs: Sequence[GroupRun]) -> Iterator[pa.RecordBatch]:
    for run in runs:
        with open_label_file(run.file, proposals=True, pre_buffer=True) as file:
            columns = (*LIGHT_COLUMNS, "proposals")
            yield from (batch for _, batch in file.batches(columns, _ROWS_AT_ONCE, run.row_groups))
