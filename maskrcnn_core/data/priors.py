"""Boxes that stand for those of a data set: where detectors with priors begin (YOLOv2, section 2; MultiBox, section 3).

YOLOv2 clusters widths and heights by k-means with 1 - IoU as distance, so that small boxes count as much as large ones.
MultiBox clusters whole boxes, in fractions of the image. Neither wants the images, only the boxes.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maskrcnn_core.errors import AnnotationError

Floats = NDArray[np.float64]
PriorKind = Literal["sizes", "boxes"]

_RESTARTS = 4
_MAX_ROUNDS = 200
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Priors:
    """Clusters of boxes.

    Attributes:
        values: [priors, 2] width and height, or [priors, 4] x1, y1, x2, y2, as the boxes were given; by area.
        shares: [priors], how much of the boxes is nearest to each.
        mean_iou: of all boxes with the prior that fits best; sizes are laid over each other with one centre.
        num_boxes: that were clustered.
    """

    values: Floats
    shares: Floats
    mean_iou: float
    num_boxes: int


class BoxSample:
    """At most so many of a stream of boxes, each with the same chance; the stream itself is not kept.

    Args:
        most: boxes to keep.
        seed: of the choice.
    """

    def __init__(self, most: int, seed: int) -> None:
        self._most, self._random = most, np.random.default_rng(seed)
        self._lots: Floats = np.zeros(0)
        self._rows: Floats = np.zeros((0, 0))
        self.seen = 0

    def add(self, rows: Floats) -> None:
        """Further boxes, [boxes, any]: those with the lowest lots of all stay."""
        self.seen += len(rows)
        lots = np.concatenate([self._lots, self._random.random(len(rows))])
        rows = np.concatenate([self._rows.reshape(-1, rows.shape[1]), rows])
        if len(lots) > self._most:
            stays = np.argpartition(lots, self._most - 1)[: self._most]
            stays.sort()
            lots, rows = lots[stays], rows[stays]
        self._lots, self._rows = lots, rows

    @property
    def rows(self) -> Floats:
        """Those that were kept, in the order of the stream: [boxes, any]."""
        return self._rows


def cluster_priors(boxes: Floats, number: int, *, seed: int = 0) -> Priors:
    """k-means, begun anew a few times from different boxes (k-means++); the clusters with the highest mean IoU.

    Args:
        boxes: [boxes, 2] widths and heights, or [boxes, 4] x1, y1, x2, y2; of any unit, the same in all.
        number: of priors.
        seed: of the beginnings.

    Raises:
        AnnotationError: there are fewer different boxes than priors, or a box has no extent.
    """
    boxes = np.asarray(boxes, np.float64)
    sizes = boxes if boxes.shape[1] == 2 else boxes[:, 2:] - boxes[:, :2]
    if not np.isfinite(boxes).all() or (sizes <= 0).any():
        raise AnnotationError("a box has no width or no height, so that no prior can stand for it")
    different = len(np.unique(boxes, axis=0))
    if different < number:
        raise AnnotationError(f"there are {different} different boxes, expected at least as many as priors: {number}")
    random, best = np.random.default_rng(seed), None
    for _ in range(_RESTARTS):
        priors = _one_run(boxes, number, random)
        if best is None or priors.mean_iou > best.mean_iou:
            best = priors
    assert best is not None
    return best


def _one_run(boxes: Floats, number: int, random: np.random.Generator) -> Priors:
    """Boxes to their nearest mean, means of their boxes, until nothing changes."""
    means = _beginning(boxes, number, random)
    nearest, ious = _nearest(boxes, means)
    for _ in range(_MAX_ROUNDS):
        counts = np.bincount(nearest, minlength=number)
        sums = np.stack([np.bincount(nearest, column, number) for column in boxes.T], axis=1)
        # A mean that lost all of its boxes begins anew at the box that fits worst.
        means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], boxes[ious.argmin()])
        last = nearest
        nearest, ious = _nearest(boxes, means)
        if (nearest == last).all():
            break
    sizes = means if means.shape[1] == 2 else means[:, 2:] - means[:, :2]
    order = np.argsort(sizes.prod(axis=1), kind="stable")
    shares = np.bincount(nearest, minlength=number) / len(boxes)
    return Priors(means[order], shares[order], float(ious.mean()), len(boxes))


def _beginning(boxes: Floats, number: int, random: np.random.Generator) -> Floats:
    """k-means++: each further mean is a box, drawn with a chance that grows with its distance from those before."""
    chosen: Floats = boxes[random.integers(len(boxes))][None]
    away = _distances(boxes, chosen)[:, 0]
    for _ in range(1, number):
        weights = away**2
        new = boxes[random.choice(len(boxes), p=weights / weights.sum())][None]
        chosen = np.concatenate([chosen, new])
        away = np.minimum(away, _distances(boxes, new)[:, 0])
    return chosen


def _nearest(boxes: Floats, means: Floats) -> tuple[NDArray[np.int64], Floats]:
    """[boxes] the nearest mean of each, and its highest IoU with any; some rows at once, for memory."""
    parts = [boxes[begin : begin + _ROWS_AT_ONCE] for begin in range(0, len(boxes), _ROWS_AT_ONCE)]
    nearest: NDArray[np.int64] = np.concatenate([_distances(part, means).argmin(axis=1) for part in parts])
    ious: Floats = np.concatenate([_ious(part, means).max(axis=1) for part in parts])
    return nearest, ious


def _distances(boxes: Floats, means: Floats) -> Floats:
    """[boxes, means]: 1 - IoU of sizes; of whole boxes the squared distance of their coordinates."""
    if boxes.shape[1] == 2:
        return 1 - _ious(boxes, means)
    squares: Floats = ((boxes[:, None] - means[None]) ** 2).sum(axis=2)
    return squares


def _ious(boxes: Floats, means: Floats) -> Floats:
    """[boxes, means], of boxes where they are, of sizes with one centre."""
    if boxes.shape[1] == 2:
        boxes, means = (np.concatenate([-sizes / 2, sizes / 2], axis=1) for sizes in (boxes, means))
    low = np.maximum(boxes[:, None, :2], means[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], means[None, :, 2:])
    both = np.maximum(high - low, 0).prod(axis=2)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=1) for each in (boxes, means)]
    ious: Floats = both / (areas[0][:, None] + areas[1][None] - both)
    return ious
