"""Scoring states of the reference: what pycocotools found per image and category, accumulated once by pycocotools."""

import contextlib
import copy
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_core.evaluation.annotations import CocoDict
from maskrcnn_core.evaluation.scoring_states import ScoringRules, ScoringState, Tables

_Entry = dict[str, Any]
_KEPT = ("dtScores", "dtMatches", "dtIgnore", "gtIgnore")  # what pycocotools' accumulate reads


@dataclass(frozen=True)
class PycocotoolsState:
    """State of some images.

    Attributes:
        rules: of the scoring.
        entries: by image id, what `COCOeval.evaluateImg` returned, by category and area in one number
            (index of the category * number of areas + index of the area); nothing where it returned None.
    """

    rules: ScoringRules
    entries: Mapping[int, Mapping[int, _Entry]]

    def merged_with(self, others: Sequence[ScoringState]) -> "PycocotoolsState":
        """See `ScoringState`."""
        entries = dict(self.entries)
        for other in others:
            entries.update(cast(PycocotoolsState, other).entries)
        return PycocotoolsState(self.rules, entries)

    def finish(self) -> Tables:
        """See `ScoringState`."""
        evaluation = new_evaluation(self.rules, None, None)
        image_ids = sorted(self.entries)
        params = evaluation.params
        params.imgIds, params.catIds = image_ids, list(self.rules.category_ids)
        cells = len(params.catIds) * len(params.areaRng)
        # The order that COCOeval.evaluate makes: by category, then area, then image id.
        evaluation.evalImgs = [self.entries[image_id].get(cell) for cell in range(cells) for image_id in image_ids]
        evaluation._paramsEval = copy.deepcopy(params)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
        return Tables(*(evaluation.eval[name] for name in ("precision", "recall", "scores")))


def match_with_pycocotools(
    rules: ScoringRules,
    images: Sequence[CocoDict],
    annotations: Sequence[CocoDict],
    results: Sequence[CocoDict],
    new: "Callable[[ScoringRules, Any, Any], Any] | None" = None,
) -> PycocotoolsState:
    """As `match_images`.

    Args:
        rules, images, annotations, results: as there.
        new: makes the COCOeval; None = `new_evaluation`.
    """
    # pycocotools writes into what it is given (ids, areas, polygons turned into RLE), so it gets copies.
    copies = [
        {**annotation, "id": number, "iscrowd": annotation.get("iscrowd", 0)}
        for number, annotation in enumerate(annotations, 1)
    ]
    categories = [{"id": category_id} for category_id in rules.category_ids]
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress by print
        truth = _load({"images": list(images), "annotations": copies, "categories": categories})
        detections = truth.loadRes([dict(result) for result in results]) if results else _load({"images": list(images)})
        evaluation = (new or new_evaluation)(rules, truth, detections)
        evaluation.evaluate()
    return PycocotoolsState(rules, _entries(evaluation))


def new_evaluation(rules: ScoringRules, truth: Any, detections: Any) -> Any:
    """A COCOeval with the rules of the scoring."""
    evaluation = COCOeval(truth, detections, rules.iou_type)
    evaluation.params.maxDets = list(rules.limits)
    if rules.sigmas is not None:
        evaluation.params.kpt_oks_sigmas = np.array(rules.sigmas)
    return evaluation


def _load(dataset: CocoDict) -> Any:
    coco = COCO()
    coco.dataset = {"annotations": [], "categories": []} | dataset
    coco.createIndex()
    return coco


def _entries(evaluation: Any) -> dict[int, dict[int, _Entry]]:
    image_ids = evaluation.params.imgIds
    entries: dict[int, dict[int, _Entry]] = {int(image_id): {} for image_id in image_ids}
    for index, entry in enumerate(evaluation.evalImgs):
        if entry is not None:
            cell, image = divmod(index, len(image_ids))
            # Of a match only whether there is one is asked later.
            matched = entry["dtMatches"] != 0
            entries[int(image_ids[image])][cell] = {key: entry[key] for key in _KEPT} | {"dtMatches": matched}
    return entries
