"""Scoring in parts: the state of some images, the merge of states, and the tables of precision and recall of all.

    match_images (a part of the images) -> ScoringState -> merge_states -> finish -> Tables

A state is small (some tens of bytes for each detection), can be pickled, and merges exactly: whatever the parts and
their order, the tables equal those of one scoring of everything bit for bit. Two things make it so. Every part knows
all categories, also those that it has no object of. And the order of images in the end is that of their ids, not that
of the parts, because it decides between equal scores.

Engines get annotation ids of our own, 1 and up within a part: pycocotools takes a match with an object of id 0 for
none, and one of two objects with one id for the other. Nothing else of an id reaches the numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Engine = Literal["hotcoco", "pycocotools"]
IouType = Literal["bbox", "segm", "keypoints"]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoringRules:
    """What all parts of one scoring have in common.

    Attributes:
        iou_type: what overlaps are of.
        category_ids: all categories of the annotation file that are scored, sorted.
        limits: best detections of an image and category that count; increasing.
        engine: `hotcoco` (compiled) or `pycocotools` (the reference); the tables are equal.
        sigmas: of keypoints, the spread of each as a share of the object's scale; None = COCO's 17.
    """

    iou_type: IouType
    category_ids: tuple[int, ...]
    limits: tuple[int, ...]
    engine: Engine = "hotcoco"
    sigmas: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Tables:
    """Precision and recall of all images.

    T IoU thresholds (0.50, 0.55 .. 0.95), R recalls (0, 0.01 .. 1), K categories by id, A areas (all, small, medium,
    large; of keypoints all, medium, large), M detection limits. -1 where there is no object to measure on.

    Attributes:
        precision: [T, R, K, A, M].
        recall: [T, K, A, M].
        scores: [T, R, K, A, M] score of the detection that reaches each recall.
    """

    precision: FloatArray
    recall: FloatArray
    scores: FloatArray


class ScoringState(Protocol):
    """State of some images; immutable, and it can be pickled."""

    def merged_with(self, others: "Sequence[ScoringState]") -> "ScoringState":
        """The state of its own images and those of states with the same rules and other images."""
        ...

    def finish(self) -> Tables:
        """The tables of its images."""
        ...


def merge_states(states: Iterable[ScoringState]) -> ScoringState:
    """One state for all images of the given ones, of which there is at least one; their order does not matter."""
    first, *others = states
    return first.merged_with(others) if others else first
