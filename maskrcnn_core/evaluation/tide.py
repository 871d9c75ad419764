"""How much AP each kind of error costs: TIDE, Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
Errors", ECCV 2020, sections 2.2 and 2.3.

At IoU 0.50 a detection that is not right is one of (t_f = 0.50, t_b = 0.10, IoU with objects that count):

- *localisation*: right category, t_b <= IoU < t_f
- *classification*: IoU >= t_f with an object of another category
- *duplicate*: right category and IoU >= t_f, but a better detection has the object
- *background*: IoU < t_b with every object
- *both*: none of these, so t_b <= IoU < t_f with an object of another category

asked in the order localisation, classification, duplicate, background. An object that is not found is *missed* unless a
localisation or classification error is about it.

The cost of a kind is AP after mending these errors only, less AP: a classification or localisation error about an
object that is not found becomes right for that object (of several the best; the others go), one about an object that is
found goes; duplicate, background and both go; missed objects are no longer asked for. Costs do not add up to 1 - AP, as
mending one kind changes what the others cost. AP is the mean over categories with objects; a category of which nothing
is left to ask for keeps the AP it had.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from maskrcnn_core.evaluation.analysis import ERROR_KINDS, ErrorAnalysis
from maskrcnn_core.evaluation.match_precision import precision_at_recalls
from maskrcnn_core.evaluation.matches import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    DUPLICATE,
    FOREGROUND,
    IGNORED,
    LOCALISATION,
    ON_BACKGROUND,
    RIGHT,
    Matches,
)

_CODES = {
    "classification": CLASSIFICATION,
    "localisation": LOCALISATION,
    "both": BOTH,
    "duplicate": DUPLICATE,
    "background": ON_BACKGROUND,
}


def analyse_errors(matches: Matches, categories: int) -> ErrorAnalysis:
    """Counts and costs of the six kinds of errors.

    Args:
        matches: of all images, boxes or masks.
        categories: number of categories.
    """
    asked = np.bincount(matches.object_category, minlength=categories)
    missed = ~matches.object_found & ~matches.object_covered
    lost = np.bincount(matches.object_category[missed], minlength=categories)
    unfound = np.bincount(matches.object_category[~matches.object_found], minlength=categories)
    base = _precisions(matches, asked)

    def cost(mended: Matches, left: npt.NDArray[np.int64] = asked) -> float:
        after = np.where(left > 0, _precisions(mended, left), base)
        return float((after - base)[asked > 0].mean()) if (asked > 0).any() else 0.0

    costs = {name: cost(_mended(matches, code)) for name, code in _CODES.items()}
    costs["missed"] = cost(matches, asked - lost)
    counts = {name: int((matches.kind == code).sum()) for name, code in _CODES.items()}
    counts["missed"] = int(missed.sum())
    return ErrorAnalysis(
        iou=FOREGROUND,
        background_iou=BACKGROUND,
        ap=float(base[asked > 0].mean()) if (asked > 0).any() else -1.0,
        counts={kind: counts[kind] for kind in ERROR_KINDS},
        ap_costs={kind: costs[kind] for kind in ERROR_KINDS},
        false_positive_cost=cost(_chosen(matches, np.isin(matches.kind, (RIGHT, IGNORED)))),
        false_negative_cost=cost(matches, asked - unfound),
    )


def _precisions(matches: Matches, asked: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """[K] AP at IoU 0.50, 0 without objects."""
    order = np.lexsort((matches.image, -matches.score))
    category, kind = matches.category[order], matches.kind[order]
    values = np.zeros(len(asked))
    for index in np.flatnonzero(asked):
        own = kind[category == index]
        right, wrong = (own == RIGHT)[:, None], ((own != RIGHT) & (own != IGNORED))[:, None]
        values[index] = precision_at_recalls(right, wrong, float(asked[index])).mean()
    return values


def _mended(matches: Matches, code: int) -> Matches:
    """The errors of one kind mended."""
    errors = matches.kind == code
    if code not in (CLASSIFICATION, LOCALISATION):
        return _chosen(matches, ~errors)
    owner = dict(zip(matches.object_id.tolist(), matches.object_category.tolist(), strict=True))
    taken = set(matches.object_id[matches.object_found].tolist())
    kind, category, kept = matches.kind.copy(), matches.category.copy(), np.ones(len(errors), np.bool_)
    rows = np.flatnonzero(errors)
    for row in rows[np.lexsort((matches.image[rows], -matches.score[rows]))]:
        target = int(matches.target[row])
        if target in taken:
            kept[row] = False
            continue
        taken.add(target)
        kind[row], category[row] = RIGHT, owner[target]
    return _chosen(replace(matches, kind=kind, category=category), kept)


def _chosen(matches: Matches, rows: npt.NDArray[np.bool_]) -> Matches:
    """Only some of the detections."""
    names = ("image", "category", "score", "hits", "ignored", "overlap", "kind", "target")
    picked: dict[str, Any] = {name: getattr(matches, name)[rows] for name in names}
    return replace(matches, **picked)
