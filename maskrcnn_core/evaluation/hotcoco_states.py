"""Scoring states of the compiled engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import hotcoco
import numpy as np

from maskrcnn_core.evaluation.annotations import CocoDict
from maskrcnn_core.evaluation.scoring_states import ScoringRules, ScoringState, Tables

_FIELDS = ("image_id", "category_id", "bbox", "area", "segmentation", "keypoints", "num_keypoints")


@dataclass(frozen=True)
class HotcocoState:
    """State of some images.

    Attributes:
        stream: `hotcoco.StreamingEval` with these images; not updated any more. It sorts images by id itself.
    """

    stream: Any

    def merged_with(self, others: Sequence[ScoringState]) -> "HotcocoState":
        """See `ScoringState`."""
        streams = [cast(HotcocoState, state).stream for state in (self, *others)]
        return HotcocoState(hotcoco.StreamingEval.merge(streams))

    def finish(self) -> Tables:
        """See `ScoringState`."""
        evaluation = self.stream.finalize()
        evaluation.accumulate()
        return Tables(*(np.asarray(evaluation.eval[name]) for name in ("precision", "recall", "scores")))


def match_with_hotcoco(
    rules: ScoringRules, images: Sequence[CocoDict], annotations: Sequence[CocoDict], results: Sequence[CocoDict]
) -> HotcocoState:
    """As `match_images`."""
    params = hotcoco.Params(rules.iou_type)
    params.max_dets = list(rules.limits)
    if rules.sigmas is not None:
        params.kpt_oks_sigmas = list(rules.sigmas)
    categories = [{"id": category_id, "name": str(category_id)} for category_id in rules.category_ids]
    stream = hotcoco.StreamingEval(categories, rules.iou_type, params=params)
    stream.update(
        [_image(image) for image in images],
        [_object(annotation, number, rules) for number, annotation in enumerate(annotations, 1)],
        list(results),
    )
    return HotcocoState(stream)


def _image(image: CocoDict) -> CocoDict:
    return {key: image[key] for key in ("id", "width", "height") if key in image}


def _object(annotation: CocoDict, number: int, rules: ScoringRules) -> CocoDict:
    """Only what scoring reads, with an id of our own (`scoring_states`); the crowd flag, which pycocotools' own files
    always have, is no where it is missing."""
    read = {key: annotation[key] for key in _FIELDS if key in annotation}
    if rules.iou_type != "segm":
        read.pop("segmentation", None)
    return read | {"id": number, "iscrowd": annotation.get("iscrowd", 0)}
