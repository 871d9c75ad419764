"""LVIS' scoring of federated annotations: Gupta et al., "LVIS", CVPR 2019, section 2.

An image is annotated for some categories only: those that it has objects of, and those known to be absent
(`neg_category_ids`). Detections of others are left out. Where not all objects of a category are annotated
(`not_exhaustive_category_ids`), what matches none is neither right nor wrong. The best 300 detections of an image
count, over all categories. Categories are rare, common or frequent (`frequency`: r, c, f) by their number of images.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from maskrcnn_core.evaluation.analysis import FederatedScores
from maskrcnn_core.evaluation.annotations import CocoDict
from maskrcnn_core.evaluation.pycocotools_states import PycocotoolsState, match_with_pycocotools
from maskrcnn_core.evaluation.scoring_states import FloatArray, ScoringRules, Tables

MAX_DETECTIONS = 300
FEDERATED_STAT_NAMES = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *("AR@300", "ARs@300", "ARm@300", "ARl@300"),
)
_AREAS = 4


def is_federated(images: Sequence[CocoDict]) -> bool:
    """Whether images say what is known to be absent."""
    return any("neg_category_ids" in image for image in images)


def match_federated(
    rules: ScoringRules, images: Sequence[CocoDict], annotations: Sequence[CocoDict], results: Sequence[CocoDict]
) -> PycocotoolsState:
    """As `scoring_states.match_images`, by LVIS' rules; the rules' limits and engine do not matter."""
    rules = replace(rules, limits=(MAX_DETECTIONS,), engine="pycocotools")
    asked: dict[int, set[int]] = {image["id"]: set(image.get("neg_category_ids", ())) for image in images}
    for annotation in annotations:
        asked[annotation["image_id"]].add(annotation["category_id"])
    kept = [one for one in _best(results) if one["category_id"] in asked[one["image_id"]]]
    # LVIS has no crowd regions; an object without a mask is one of ours.
    objects = [{**annotation, "iscrowd": int(annotation.get("without_mask", False))} for annotation in annotations]
    state = match_with_pycocotools(rules, images, objects, kept)
    indices = {category_id: index for index, category_id in enumerate(rules.category_ids)}
    for image in images:
        entries = state.entries[image["id"]]
        for category_id in image.get("not_exhaustive_category_ids", ()):
            first = indices.get(category_id, -1) * _AREAS
            for cell in range(first, first + _AREAS) if first >= 0 else ():
                if cell in entries:
                    entries[cell]["dtIgnore"] = entries[cell]["dtIgnore"] | ~entries[cell]["dtMatches"]
    return state


def summarize_federated(categories: Sequence[CocoDict], tables: Tables) -> FederatedScores:
    """LVIS' numbers.

    Args:
        categories: of the annotation file, `frequency` as far as they have one.
        tables: of one detection limit.
    """
    precision, recall = tables.precision[..., -1], tables.recall[..., -1]
    frequencies = np.array([one.get("frequency", "") for one in sorted(categories, key=lambda one: one["id"])])
    return FederatedScores(
        FEDERATED_STAT_NAMES,
        (
            *(_mean(values) for values in (precision[..., 0], precision[0, ..., 0], precision[5, ..., 0])),
            *(_mean(precision[..., area]) for area in range(1, _AREAS)),
            *(_mean(precision[:, :, frequencies == frequency, 0]) for frequency in "rcf"),
            *(_mean(recall[..., area]) for area in range(_AREAS)),
        ),
    )


def _best(results: Sequence[CocoDict]) -> list[CocoDict]:
    """The best of each image, over all categories."""
    by_image: dict[int, list[CocoDict]] = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    return [
        one
        for detections in by_image.values()
        for one in (sorted(detections, key=lambda one: -one["score"])[:MAX_DETECTIONS])
    ]


def _mean(values: FloatArray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
