"""The COCO numbers of label records: precision and recall of boxes, masks and keypoints, equal to pycocotools' bit for
bit.

One scoring has three steps, so that the first can run on shards of the images (`shards`) and only the second on all of
them: matching (per image and category), accumulation (precision and recall tables) and summary (12 numbers, of
keypoints 10, and AP per category).
The engine does the first two; the summary is ours, because pycocotools' own is defined for 100 detections only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from maskrcnn_core.data.coco.category_names import shown_names
from maskrcnn_core.data.coco.entry_faults import FaultKind, Faults
from maskrcnn_core.evaluation.annotations import CocoDict, read_document
from maskrcnn_core.evaluation.match_counts import ObjectFacts, require_known_categories
from maskrcnn_core.evaluation.results import Coverage, match_labels
from maskrcnn_core.evaluation.scoring_states import Engine, FloatArray, IouType, Tables
from maskrcnn_core.evaluation.shards import FoundInRows, ScoringPlan, ShardScores, score_shard, scored_types

STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The 12 numbers in pycocotools' order. AR100 is the recall at `max_detections`, which COCO sets to 100."""

KEYPOINT_STAT_NAMES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
"""The 10 numbers of keypoints in pycocotools' order, at the best 20 detections; small persons are not annotated."""

NOT_DEFINED = -1.0
"""Value of a number that has no annotated object to be measured on."""

_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
_KEYPOINT_MEDIUM, _KEYPOINT_LARGE = 1, 2  # their scoring has no small ones
_IOU_50, _IOU_75 = 0, 5  # of the thresholds 0.50, 0.55 .. 0.95


@dataclass(frozen=True)
class CategoryScore:
    """Average precision of one category.

    Attributes:
        id, name: as in the annotation file; of categories with one name, the name has the id with it.
        annotations: annotated objects, crowd regions not counted.
        ap: average precision over IoU (or OKS) 0.50 to 0.95 by iou type; -1 without annotated objects.
    """

    id: int
    name: str
    annotations: int
    ap: Mapping[str, float]


@dataclass(frozen=True)
class CocoScores:
    """The result of one scoring.

    Attributes:
        stats: by iou type (`bbox`, `segm`, `keypoints`) the numbers that `stat_names` names; -1 where not defined.
        per_category: every category of the annotation file, by id.
        coverage: which images were labelled.
        detections: detections on annotated images, before the limit per image and category.
        annotations: annotated objects, crowd regions not counted.
        skipped: by iou type, why it was not scored.
        unknown_categories: detections left out because the annotation file lacks their category, by its name.
        tables: by iou type, precision and recall of every category, size and threshold.
        notes: what was left out or mended of annotations, as far as it matters for what was scored.
    """

    stats: Mapping[str, tuple[float, ...]]
    per_category: tuple[CategoryScore, ...]
    coverage: Coverage
    detections: int
    annotations: int
    skipped: Mapping[str, str]
    unknown_categories: Mapping[str, int]
    tables: Mapping[str, Tables] = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False)


def evaluate_coco(
    annotations: CocoDict,
    labels: pa.Table,
    iou_types: Sequence[IouType] = ("bbox", "segm", "keypoints"),
    max_detections: int = 100,
    engine: Engine = "hotcoco",
    keypoint_sigmas: Sequence[float] | None = None,
) -> CocoScores:
    """Score label records against COCO annotations, both in memory.

    All images of the annotation file are evaluated: one that was not labelled, or that failed, counts as an image in
    which nothing was found. Label rows of other images are left out. `coverage` counts both. Masks are scored where
    annotations have some and every detection has one, keypoints where categories of the annotations list them and every
    detection of these has some; otherwise `skipped` says why not. Where neither side knows keypoints it is silent.

    Args:
        annotations: COCO instances, as read from the JSON file or clean (`CocoDataset.document`); not changed.
        labels: label records (`inference.records`), one row per image.
        iou_types: what to score.
        max_detections: best detections of an image and category that count, at least 10; of keypoints always 20.
        engine: `hotcoco` (compiled) or `pycocotools` (the reference); the numbers are equal.
        keypoint_sigmas: how far annotators differ in each keypoint, as a share of the object's scale; None = COCO's,
            for its 17 keypoints of a person.

    Raises:
        ConfigError: `keypoint_sigmas` of another number than the keypoints.
        AnnotationError: ids of the annotations are wrong, or labels and annotations do not fit
            (`results.match_labels`).
    """
    truth = read_document(annotations)
    rows, coverage = match_labels(labels, truth.images)
    plan = ScoringPlan(
        truth.categories,
        tuple(iou_types),
        max_detections,
        engine,
        None if keypoint_sigmas is None else tuple(keypoint_sigmas),
    )
    shard = score_shard(plan, tuple(truth.images.values()), truth.entries, FoundInRows(rows))
    return finish_scores(plan, replace(shard, faults=truth.faults), coverage)


def finish_scores(plan: ScoringPlan, shard: ShardScores, coverage: Coverage) -> CocoScores:
    """The numbers of a scoring whose shards are merged.

    Args:
        plan: of the scoring.
        shard: all images.
        coverage: which of them were labelled.

    Raises:
        ConfigError: as `evaluate_coco`.
        AnnotationError: no detection has a category of the annotation file.
    """
    require_known_categories(shard.detected, plan.category_ids)
    scored, skipped = scored_types(plan, shard.objects, shard.detected)
    tables: dict[str, Tables] = {iou_type: shard.states[iou_type].finish() for iou_type in scored}
    return CocoScores(
        stats={
            iou_type: (summarize_keypoints if iou_type == "keypoints" else summarize)(table.precision, table.recall)
            for iou_type, table in tables.items()
        },
        per_category=_category_scores(plan, shard.objects, tables),
        coverage=coverage,
        detections=shard.detected.detections,
        annotations=sum(shard.objects.per_category.values()),
        skipped=skipped,
        unknown_categories=dict(shard.detected.unknown),
        tables=tables,
        notes=_faults_that_matter(shard.faults, scored).lines(),
    )


def _faults_that_matter(faults: Faults, scored: Sequence[str]) -> Faults:
    unread: list[FaultKind] = [] if "segm" in scored else ["mask", "no mask"]
    unread += [] if "keypoints" in scored else ["keypoints"]
    return faults.without(*unread)


def stat_names(iou_type: str) -> tuple[str, ...]:
    """Names of the numbers in `CocoScores.stats[iou_type]`."""
    return KEYPOINT_STAT_NAMES if iou_type == "keypoints" else STAT_NAMES


def summarize(precision: FloatArray, recall: FloatArray) -> tuple[float, ...]:
    """The 12 COCO numbers.

    Args:
        precision: [10 IoU thresholds, 101 recalls, K, 4 area ranges, 3 detection limits], -1 where not defined.
        recall: [10 IoU thresholds, K, 4 area ranges, 3 detection limits], -1 where not defined.
    """
    ap = [
        _mean(precision[:, :, :, _ALL, 2]),
        _mean(precision[_IOU_50, :, :, _ALL, 2]),
        _mean(precision[_IOU_75, :, :, _ALL, 2]),
        *(_mean(precision[:, :, :, area, 2]) for area in (_SMALL, _MEDIUM, _LARGE)),
    ]
    ar = [
        *(_mean(recall[:, :, _ALL, limit]) for limit in range(3)),
        *(_mean(recall[:, :, area, 2]) for area in (_SMALL, _MEDIUM, _LARGE)),
    ]
    return (*ap, *ar)


def summarize_keypoints(precision: FloatArray, recall: FloatArray) -> tuple[float, ...]:
    """The 10 COCO numbers of keypoints, from tables as in `summarize` with 3 area ranges and 1 detection limit."""
    areas = (_KEYPOINT_MEDIUM, _KEYPOINT_LARGE)
    return (
        _mean(precision[:, :, :, _ALL]),
        _mean(precision[_IOU_50, :, :, _ALL]),
        _mean(precision[_IOU_75, :, :, _ALL]),
        *(_mean(precision[:, :, :, area]) for area in areas),
        _mean(recall[:, :, _ALL]),
        _mean(recall[_IOU_50, :, _ALL]),
        _mean(recall[_IOU_75, :, _ALL]),
        *(_mean(recall[:, :, area]) for area in areas),
    )


def _mean(values: FloatArray) -> float:
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else NOT_DEFINED


def _category_scores(
    plan: ScoringPlan, objects: ObjectFacts, tables: Mapping[str, Tables]
) -> tuple[CategoryScore, ...]:
    names = shown_names(plan.categories)
    ap = {
        iou_type: dict(
            zip(
                sorted(plan.with_keypoints) if iou_type == "keypoints" else plan.category_ids,
                (_mean(table.precision[:, :, index, _ALL, -1]) for index in range(table.precision.shape[2])),
                strict=True,
            )
        )
        for iou_type, table in tables.items()
    }
    return tuple(
        CategoryScore(
            category_id,
            names[category_id],
            objects.per_category.get(category_id, 0),
            {iou_type: values.get(category_id, NOT_DEFINED) for iou_type, values in ap.items()},
        )
        for category_id in plan.category_ids
    )
