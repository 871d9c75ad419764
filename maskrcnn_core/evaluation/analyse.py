"""Everything beyond the 12 numbers, from the merged state of a scoring."""

from collections.abc import Mapping, Sequence

import numpy as np

from maskrcnn_core.data.coco.category_names import shown_names
from maskrcnn_core.evaluation.analysis import (
    SIZES,
    CategoryDetails,
    ConfusionMatrix,
    EvaluationDetails,
    FederatedScores,
    KindDetails,
    RunComparison,
    RunDifference,
)
from maskrcnn_core.evaluation.bootstrap import ap_interval, compare_runs
from maskrcnn_core.evaluation.calibration import calibrate
from maskrcnn_core.evaluation.coco import NOT_DEFINED, summarize
from maskrcnn_core.evaluation.curves import best_threshold, category_curves, mean_curves
from maskrcnn_core.evaluation.match_precision import Ranking, rankings
from maskrcnn_core.evaluation.matches import FOREGROUND, THRESHOLDS, Matches
from maskrcnn_core.evaluation.scoring_states import FloatArray, IouType, Tables
from maskrcnn_core.evaluation.shards import ScoringPlan, ShardScores
from maskrcnn_core.evaluation.tide import analyse_errors

_KEYPOINT_SIZES = ("all", "medium", "large")


def build_details(
    plan: ScoringPlan, shard: ShardScores, tables: Mapping[str, Tables], samples: int
) -> EvaluationDetails:
    """Details of each iou type that was scored.

    Args:
        plan: of the scoring, with `min_score`.
        shard: all images.
        tables: by iou type.
        samples: of the bootstrap.
    """
    return EvaluationDetails(
        {
            iou_type: _details(plan, shard, iou_type, tables[iou_type], samples)
            for iou_type in shard.matches
            if iou_type in tables
        }
    )


def build_comparison(plan: ScoringPlan, first: ShardScores, second: ShardScores, samples: int) -> RunComparison:
    """Two runs on the same images, by what was scored in both."""
    images = np.unique(np.concatenate([first.image_ids, second.image_ids]))
    kinds: dict[str, RunDifference] = {}
    for iou_type in first.matches:
        if iou_type in second.matches:
            named = _names(plan, iou_type)
            ranked = [rankings(run.matches[iou_type], len(named), images) for run in (first, second)]
            kinds[iou_type] = compare_runs(ranked[0], ranked[1], named, len(images), samples)
    return RunComparison(kinds)


def _details(plan: ScoringPlan, shard: ShardScores, iou_type: IouType, tables: Tables, samples: int) -> KindDetails:
    matches, named = shard.matches[iou_type], _names(plan, iou_type)
    ranked = rankings(matches, len(named), np.unique(shard.image_ids))
    precision = tables.precision[..., -1]  # [T, R, K, A]
    sizes = _KEYPOINT_SIZES if iou_type == "keypoints" else SIZES
    points = iou_type == "keypoints"
    return KindDetails(
        ious=tuple(float(value) for value in THRESHOLDS.round(2)),
        ap_per_iou=tuple(_mean(precision[threshold, :, :, 0]) for threshold in range(len(THRESHOLDS))),
        ap_per_size={size: _mean(precision[..., area]) for area, size in enumerate(sizes)},
        categories=tuple(
            _category(tables, index, category_id, name, ranked[index], sizes)
            for index, (category_id, name) in enumerate(named)
        ),
        mean_curves=mean_curves(tables),
        calibration=calibrate(matches),
        interval=ap_interval(ranked, len(np.unique(shard.image_ids)), samples),
        confusion=None if points else _confusion(plan, matches, named),
        errors=None if points else analyse_errors(matches, len(named)),
        boundary=_boundary(shard) if iou_type == "segm" else None,
        federated=_federated(plan, shard, iou_type),
    )


def _category(
    tables: Tables, index: int, category_id: int, name: str, ranking: Ranking, sizes: Sequence[str]
) -> CategoryDetails:
    precision = tables.precision[:, :, index, :, -1]  # [T, R, A]
    return CategoryDetails(
        id=category_id,
        name=name,
        objects=len(ranking.object_images),
        detections=len(ranking.scores),
        ap=_mean(precision[..., 0]),
        ap_per_iou=tuple(_mean(precision[threshold, :, 0]) for threshold in range(len(THRESHOLDS))),
        ap_per_size={size: _mean(precision[..., area]) for area, size in enumerate(sizes)},
        best=best_threshold(ranking),
        curves=category_curves(tables, index),
    )


def _confusion(plan: ScoringPlan, matches: Matches, named: Sequence[tuple[int, str]]) -> ConfusionMatrix:
    labels = (*(name for _, name in named), "background")
    counts = tuple(tuple(row) for row in matches.confusion.tolist())
    return ConfusionMatrix(FOREGROUND, plan.min_score or 0.0, labels, counts)


def _boundary(shard: ShardScores) -> tuple[float, ...] | None:
    if "boundary" not in shard.extras:
        return None
    tables = shard.extras["boundary"].finish()
    return summarize(tables.precision, tables.recall)


def _federated(plan: ScoringPlan, shard: ShardScores, iou_type: IouType) -> FederatedScores | None:
    if f"federated {iou_type}" not in shard.extras:
        return None
    from maskrcnn_core.evaluation.federated import summarize_federated

    return summarize_federated(plan.categories, shard.extras[f"federated {iou_type}"].finish())


def _names(plan: ScoringPlan, iou_type: IouType) -> list[tuple[int, str]]:
    names = shown_names(plan.categories)
    return [(category_id, names[category_id]) for category_id in plan.rules(iou_type).category_ids]


def _mean(values: FloatArray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else NOT_DEFINED
