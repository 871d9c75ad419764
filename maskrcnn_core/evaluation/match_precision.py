"""Average precision from matches, also where images count a different number of times (bootstrap)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskrcnn_core.evaluation.matches import Matches
from maskrcnn_core.evaluation.scoring_states import FloatArray

RECALLS = np.linspace(0.0, 1.0, 101)
_TINY = float(np.spacing(1))


@dataclass(frozen=True)
class Ranking:
    """Detections of one category, best first, and its objects.

    Attributes:
        scores: [N].
        hits: [N, T] right; wrong: [N, T] neither right nor ignored.
        images: [N] place of the image in a list of all images.
        object_images: [G] the same of objects.
    """

    scores: FloatArray
    hits: npt.NDArray[np.bool_]
    wrong: npt.NDArray[np.bool_]
    images: npt.NDArray[np.int64]
    object_images: npt.NDArray[np.int64]


def rankings(matches: Matches, categories: int, images: npt.NDArray[np.int64]) -> list[Ranking]:
    """A ranking of each category; equal scores go by image id, as in COCO's scoring.

    Args:
        matches: of all images.
        categories: number of categories.
        images: sorted ids of the images that places refer to.
    """
    order = np.lexsort((matches.image, -matches.score))
    order = order[np.argsort(matches.category[order], kind="stable")]
    ends = np.searchsorted(matches.category[order], np.arange(1, categories))
    ranked = []
    for category, rows in enumerate(np.split(order, ends)):
        own = matches.object_image[matches.object_category == category]
        ranked.append(
            Ranking(
                matches.score[rows],
                matches.hits[rows],
                ~(matches.hits[rows] | matches.ignored[rows]),
                np.searchsorted(images, matches.image[rows]),
                np.searchsorted(images, own),
            )
        )
    return ranked


def average_precision(ranking: Ranking, weights: FloatArray | None = None) -> FloatArray:
    """[T] AP at each threshold, interpolated at 101 recalls as COCO's; -1 without objects.

    Args:
        ranking: of a category.
        weights: how often each image counts; None = once.
    """
    objects = len(ranking.object_images) if weights is None else weights[ranking.object_images].sum()
    if not objects:
        return np.full(ranking.hits.shape[1], -1.0)
    times = np.ones(len(ranking.scores)) if weights is None else weights[ranking.images]
    kept = times > 0
    sampled = precision_at_recalls(ranking.hits[kept], ranking.wrong[kept], float(objects), times[kept])
    values: FloatArray = sampled.mean(axis=1)
    return values


def precision_at_recalls(
    hits: npt.NDArray[np.bool_], wrong: npt.NDArray[np.bool_], objects: float, times: FloatArray | None = None
) -> FloatArray:
    """[T, 101] the best precision at each recall or beyond, 0 where not reached.

    Args:
        hits, wrong: [N, T], best detections first.
        objects: how many there are to find.
        times: [N] how often each detection counts; None = once.
    """
    sampled = np.zeros((hits.shape[1], len(RECALLS)))
    if not len(hits):
        return sampled
    factor = 1.0 if times is None else times[:, None]
    right, bad = np.cumsum(hits * factor, axis=0), np.cumsum(wrong * factor, axis=0)
    precision = right / (right + bad + _TINY)
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = right / objects
    for threshold in range(hits.shape[1]):
        places = np.searchsorted(recall[:, threshold], RECALLS, side="left")
        reached = places < len(hits)
        sampled[threshold, reached] = envelope[places[reached], threshold]
    return sampled
