"""Which detections of an image are right, and what in it is worth showing.

Matching is COCO's at one overlap: detections from the best score down take the free object of their category that they
overlap most. Here boxes decide, also where there are masks: a mask that is drawn badly inside the right box is then a
bad mask, and not a false positive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from maskrcnn_core.data.segmentation import run_lengths
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.report.content import ExampleKind

NOTHING = -1
"""In place of an index: matched with nothing."""
IGNORED = -2
"""In place of an index: a detection on a crowd region, neither right nor wrong."""

_Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Matched:
    """Detections and objects of one image put together.

    Attributes:
        object_of: [D] index of the object that each detection found, `NOTHING` or `IGNORED`.
        overlaps: [D] box IoU with that object, or the largest with any object of any category where there is none.
        nearest: [D] index of the object that `overlaps` is of; `NOTHING` without objects.
        detection_of: [G] index of the detection that found each object, or `NOTHING`.
    """

    object_of: NDArray[np.int64]
    overlaps: NDArray[np.float64]
    nearest: NDArray[np.int64]
    detection_of: NDArray[np.int64]


@dataclass(frozen=True)
class Candidate:
    """Something of an image that a gallery may show.

    Attributes:
        kind: of gallery.
        category_id: of the object.
        interest: larger is shown first.
        box: x, y, width, height of the place, pixels; None = the whole image.
        title, note: as of `content.Example`.
    """

    kind: ExampleKind
    category_id: int | None
    interest: float
    box: _Box | None
    title: str
    note: str


def match_objects(
    detections: Sequence[DetectionRecord], annotations: Sequence[Mapping[str, Any]], min_overlap: float = 0.5
) -> Matched:
    """Put the detections of one image and its annotated objects together.

    Args:
        detections: best first.
        annotations: COCO annotation objects with `bbox`, `category_id` and perhaps `iscrowd`.
        min_overlap: least IoU.
    """
    object_of = np.full(len(detections), NOTHING, np.int64)
    detection_of = np.full(len(annotations), NOTHING, np.int64)
    if not detections or not annotations:
        return Matched(object_of, np.zeros(len(detections)), np.full(len(detections), NOTHING, np.int64), detection_of)
    crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in annotations])
    overlap = _box_overlaps(detections, annotations, crowd)
    same = np.array([detection.category_id for detection in detections])[:, None] == _category_ids(annotations)[None]
    for index in np.flatnonzero((same & (overlap >= min_overlap)).any(axis=1)).tolist():
        eligible = np.where(same[index] & (overlap[index] >= min_overlap), overlap[index], -1.0)
        free = np.where(crowd | (detection_of != NOTHING), -1.0, eligible)
        best = int(free.argmax())
        if free[best] >= 0:
            object_of[index], detection_of[best] = best, index
        elif (eligible[crowd] >= 0).any():
            object_of[index] = IGNORED
    nearest = np.where(object_of >= 0, object_of, overlap.argmax(axis=1))
    return Matched(object_of, overlap[np.arange(len(detections)), nearest], nearest, detection_of)


def _box_overlaps(
    detections: Sequence[DetectionRecord], annotations: Sequence[Mapping[str, Any]], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """[D, G] IoU; with crowd regions, the share of the detection that lies in the region."""
    boxes = np.array([one.bbox for one in detections], np.float64).reshape(-1, 4)
    truth = np.array([entry["bbox"] for entry in annotations], np.float64).reshape(-1, 4)
    return np.asarray(coco_mask.iou(boxes, truth, crowd.astype(np.uint8).tolist()))


def _category_ids(annotations: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    return np.array([entry["category_id"] for entry in annotations], np.int64)


def judged_candidates(
    record: ImageRecord,
    annotations: Sequence[Mapping[str, Any]],
    matched: Matched,
    categories: Mapping[int, str],
    min_score: float,
) -> list[Candidate]:
    """What is worth showing of an image with ground truth.

    Args:
        record: status ok.
        annotations, matched: of the image.
        categories: names by id.
        min_score: weaker detections are taken for nothing.
    """
    candidates = []
    for index, detection in enumerate(record.detections):
        if detection.score < min_score or matched.object_of[index] == IGNORED:
            continue
        title = f"{detection.category} {detection.score:.2f}"
        overlap, object_index = float(matched.overlaps[index]), int(matched.object_of[index])
        if object_index == NOTHING:
            note = _why_wrong(detection, annotations, matched, index, categories)
            candidates.append(Candidate("wrong", detection.category_id, detection.score, detection.bbox, title, note))
            continue
        quality = mask_overlap(detection, annotations[object_index], record)
        note = f"box IoU {overlap:.2f}" + (f", mask IoU {quality:.2f}" if quality is not None else "")
        worth = overlap * detection.score * (1.0 if quality is None else quality)
        candidates.append(Candidate("right", detection.category_id, worth, detection.bbox, title, note))
        if quality is not None:
            candidates.append(Candidate("mask", detection.category_id, 1.0 - quality, detection.bbox, title, note))
    return candidates + _misses(record, annotations, matched, categories, min_score)


def _why_wrong(
    detection: DetectionRecord,
    annotations: Sequence[Mapping[str, Any]],
    matched: Matched,
    index: int,
    categories: Mapping[int, str],
) -> str:
    overlap, nearest = float(matched.overlaps[index]), int(matched.nearest[index])
    if nearest == NOTHING or overlap < 0.1:
        return "on the background"
    category_id = int(annotations[nearest]["category_id"])
    name = categories.get(category_id, str(category_id))
    if category_id != detection.category_id:
        return f"on {name}, IoU {overlap:.2f}"
    if overlap >= 0.5:
        return f"a second time the same object, IoU {overlap:.2f}"
    return f"badly placed, IoU {overlap:.2f}"


def _misses(
    record: ImageRecord,
    annotations: Sequence[Mapping[str, Any]],
    matched: Matched,
    categories: Mapping[int, str],
    min_score: float,
) -> list[Candidate]:
    candidates = []
    for entry, index in zip(annotations, matched.detection_of.tolist(), strict=True):
        score = record.detections[index].score if index != NOTHING else 0.0
        if entry.get("iscrowd", 0) or score >= min_score:
            continue
        x, y, w, h = (float(value) for value in entry["bbox"])
        name = categories.get(int(entry["category_id"]), str(entry["category_id"]))
        note = f"found with score {score:.2f} only" if index != NOTHING else "not found at any score"
        candidates.append(
            Candidate("missed", int(entry["category_id"]), w * h, (x, y, w, h), name, f"{w:.0f} × {h:.0f} px, {note}")
        )
    return candidates


def mask_overlap(detection: DetectionRecord, annotation: Mapping[str, Any], record: ImageRecord) -> float | None:
    """IoU of a detection's mask with an annotated one; None where one of them has none, or a malformed one."""
    segmentation = annotation.get("segmentation")
    if detection.rle_counts is None or not segmentation or not record.height or not record.width:
        return None
    size = record.height, record.width
    try:
        detection_runs, runs = (
            _encoded(shape, *size) for shape in ({"size": list(size), "counts": detection.rle_counts}, segmentation)
        )
    except ValueError:
        return None
    return float(coco_mask.iou([detection_runs], [runs], [0])[0, 0])


def _encoded(segmentation: Any, height: int, width: int) -> Any:
    """Run lengths that have been checked, for pycocotools; no mask is drawn, however large the image."""
    runs = run_lengths(segmentation, height, width)
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


def unjudged_candidates(record: ImageRecord, min_score: float) -> list[Candidate]:
    """What is worth showing of an image without ground truth: the image, and its best and weakest detections."""
    confident = [detection for detection in record.detections if detection.score >= min_score]
    if not confident:
        return []
    count = len(confident)
    num_categories = len({detection.category_id for detection in confident})
    what = f"{count} object{'s' * (count > 1)}" + (f" of {num_categories} categories" if num_categories > 1 else "")
    candidates = [Candidate("crowded", None, float(count), None, what, f"scores from {min_score:g}")]
    for kind, detection in (("sure", confident[0]), ("unsure", confident[-1])):
        interest = detection.score if kind == "sure" else -detection.score
        x, y, w, h = detection.bbox
        note = f"{w:.0f} × {h:.0f} px"
        title = f"{detection.category} {detection.score:.2f}"
        candidates.append(
            Candidate(
                "sure" if kind == "sure" else "unsure", detection.category_id, interest, (x, y, w, h), title, note
            )
        )
    return candidates
