"""Boundary AP of masks: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", 2021.

The overlap of two masks is the smaller of their IoU and the IoU of their inner borders. A border is what of the mask
lies within d pixels of its outside, d = 2 % of the image's diagonal, the image's edge counting as outside. For crowd
regions the overlap of the masks alone counts. All else is COCO's scoring.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from maskrcnn_core.evaluation.annotations import CocoDict
from maskrcnn_core.evaluation.pycocotools_states import PycocotoolsState, match_with_pycocotools
from maskrcnn_core.evaluation.scoring_states import ScoringRules

WIDTH_SHARE = 0.02
"""Width of a border as a share of the image's diagonal."""


def match_boundaries(
    rules: ScoringRules, images: Sequence[CocoDict], annotations: Sequence[CocoDict], results: Sequence[CocoDict]
) -> PycocotoolsState:
    """As `scoring_states.match_images` for masks, by boundary IoU; rules of `segm`, whatever their engine."""
    known = frozenset(rules.category_ids)
    results = [result for result in results if result["category_id"] in known]
    return match_with_pycocotools(rules, images, annotations, results, _new_evaluation)


def inner_border(rle: CocoDict) -> CocoDict:
    """Compressed run lengths of the border of a mask, given as such."""
    height, width = rle["size"]
    distance = max(1, round(WIDTH_SHARE * float(np.hypot(height, width))))
    mask = coco_mask.decode(rle)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return rle
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    crop -= _eroded(crop, distance)
    border: CocoDict = coco_mask.encode(mask)
    return border


def _eroded(mask: npt.NDArray[np.uint8], distance: int) -> npt.NDArray[np.uint8]:
    """Pixels whose whole square of 2 `distance` + 1 pixels lies in the mask; beyond the array nothing does."""
    height, width = mask.shape
    side = 2 * distance + 1
    sums = np.zeros((height + side, width + side), np.int64)  # of an array with a margin, over all up to a corner
    sums[distance + 1 : distance + 1 + height, distance + 1 : distance + 1 + width] = mask
    sums = sums.cumsum(axis=0).cumsum(axis=1)
    full = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    eroded: npt.NDArray[np.uint8] = (full[:height, :width] == side * side).astype(np.uint8)
    return eroded


class _BoundaryEvaluation(COCOeval):  # type: ignore[misc]
    """COCOeval with another overlap."""

    def computeIoU(self, imgId: int, catId: int) -> Any:
        overlaps = super().computeIoU(imgId, catId)
        objects, detections = self._gts[imgId, catId], self._dts[imgId, catId]
        if not objects or not detections:
            return overlaps
        order = np.argsort([-one["score"] for one in detections], kind="mergesort")[: self.params.maxDets[-1]]
        borders = [
            [inner_border(one["segmentation"]) for one in entries]
            for entries in ([detections[index] for index in order], objects)
        ]
        counts = np.array([not one["iscrowd"] for one in objects], np.bool_)
        own = coco_mask.iou(*borders, [0] * len(objects))
        return np.where(counts, np.minimum(overlaps, own), overlaps)


def _new_evaluation(rules: ScoringRules, truth: Any, detections: Any) -> Any:
    evaluation = _BoundaryEvaluation(truth, detections, "segm")
    evaluation.params.maxDets = list(rules.limits)
    return evaluation
