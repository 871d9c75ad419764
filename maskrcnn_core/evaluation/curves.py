"""Precision over recall, and the score from which on to keep detections."""

import numpy as np

from maskrcnn_core.evaluation.analysis import BestThreshold, PrecisionRecallCurve
from maskrcnn_core.evaluation.match_precision import Ranking
from maskrcnn_core.evaluation.scoring_states import Tables

_SHOWN = {0.50: 0, 0.75: 5}  # IoU thresholds and their index among the ten


def category_curves(tables: Tables, category: int) -> tuple[PrecisionRecallCurve, ...]:
    """Curves of a category at IoU 0.50 and 0.75 for objects of all sizes, as COCO's tables have them; none without
    objects."""
    precision, scores = (table[:, :, category, 0, -1] for table in (tables.precision, tables.scores))
    if precision[0, 0] == -1:
        return ()
    return tuple(
        PrecisionRecallCurve(iou, tuple(precision[threshold].tolist()), tuple(scores[threshold].tolist()))
        for iou, threshold in _SHOWN.items()
    )


def mean_curves(tables: Tables) -> tuple[PrecisionRecallCurve, ...]:
    """The mean over the categories with objects; none without any."""
    precision, scores = (table[:, :, :, 0, -1] for table in (tables.precision, tables.scores))
    defined = precision[0, 0] > -1
    if not defined.any():
        return ()
    return tuple(
        PrecisionRecallCurve(
            iou,
            tuple(precision[threshold][:, defined].mean(axis=1).tolist()),
            tuple(scores[threshold][:, defined].mean(axis=1).tolist()),
        )
        for iou, threshold in _SHOWN.items()
    )


def best_threshold(ranking: Ranking) -> BestThreshold:
    """The score with the highest F1 at IoU 0.50; of equals the highest score."""
    objects = len(ranking.object_images)
    if not objects or not len(ranking.scores):
        return BestThreshold(-1.0, *([0.0] * 3 if objects else [-1.0] * 3))
    right = np.cumsum(ranking.hits[:, 0])
    kept = right + np.cumsum(ranking.wrong[:, 0])
    # A threshold keeps all detections of one score, so only the last of equals is a choice.
    last = np.flatnonzero(np.append(ranking.scores[1:] != ranking.scores[:-1], True))
    f1 = 2 * right[last] / (kept[last] + objects)
    best = last[int(f1.argmax())]
    return BestThreshold(
        float(ranking.scores[best]),
        float(f1.max()),
        float(right[best] / max(kept[best], 1)),
        float(right[best] / objects),
    )
