"""What became of every detection and object: the mergeable state that everything beyond the 12 numbers is made of.

Matching is COCO's, over objects of all sizes: within image and category the best detection goes first and takes the
free object that it overlaps most; crowd regions take any number, and what they take is neither right nor wrong. On top
of it each wrong detection has a kind of error, after Bolya et al., "TIDE", ECCV 2020, section 2.2, at IoU 0.50.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from maskrcnn_core.evaluation.annotations import CocoDict
from maskrcnn_core.evaluation.scoring_states import FloatArray, ScoringRules

THRESHOLDS = np.linspace(0.5, 0.95, 10)
FOREGROUND, BACKGROUND = 0.5, 0.1
"""TIDE's thresholds: from `FOREGROUND` on a detection is an object's, below `BACKGROUND` it is no object's."""

RIGHT, CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, ON_BACKGROUND, IGNORED = range(7)
"""What a detection is at IoU 0.50: right, one of five errors, or on a region that does not count."""

_NONE = -1
_SIGMAS = (0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89)
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """Detections (N) and objects (G) of some images.

    Attributes:
        image: [N] image id.
        category: [N] index of the category among those of the rules.
        score: [N].
        hits: [N, 10] matched with an object that counts, at each of `THRESHOLDS`.
        ignored: [N, 10] matched with one that does not.
        overlap: [N] IoU (or OKS) with the object of its category that it overlaps most; 0 without any.
        kind: [N] `RIGHT` .. `IGNORED`.
        target: [N] annotation id of the object that it is (right), or that its error is about; -1 without any.
        object_id, object_image, object_category: [G] of objects that count.
        object_found: [G] matched at 0.50.
        object_covered: [G] not matched, but a classification or localisation error is about it.
        confusion: [K + 1, K + 1] annotated x detected category at 0.50, the last of both being none.
    """

    image: _Ints
    category: _Ints
    score: FloatArray
    hits: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    overlap: FloatArray
    kind: _Ints
    target: _Ints
    object_id: _Ints
    object_image: _Ints
    object_category: _Ints
    object_found: npt.NDArray[np.bool_]
    object_covered: npt.NDArray[np.bool_]
    confusion: _Ints


def merge_matches(parts: Iterable[Matches]) -> Matches:
    """Matches of different images as one, of which there is at least one."""
    pieces = list(parts)
    merged: dict[str, Any] = {}
    for field in fields(Matches):
        values = [getattr(part, field.name) for part in pieces]
        merged[field.name] = np.sum(values, axis=0) if field.name == "confusion" else np.concatenate(values)
    return Matches(**merged)


def match_everything(
    rules: ScoringRules,
    images: Sequence[CocoDict],
    annotations: Sequence[CocoDict],
    results: Sequence[CocoDict],
    min_score: float,
) -> Matches:
    """Compare detections with annotated objects; arguments as of `scoring_states.match_images`.

    Args:
        rules, images, annotations, results: as there.
        min_score: detections below are left out of the confusion matrix.
    """
    index = {category_id: position for position, category_id in enumerate(rules.category_ids)}
    objects, detections = (_by_image(entries, index) for entries in (annotations, results))
    confusion = np.zeros((len(index) + 1, len(index) + 1), np.int64)
    parts = [_no_matches(confusion)]
    for image in images:
        own, there = objects[image["id"]], detections[image["id"]]
        if own or there:
            parts.append(_match_image(rules, image, own, there, index, min_score))
    return merge_matches(parts)


def _no_matches(confusion: _Ints) -> Matches:
    ints, flags = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    table = np.zeros((0, len(THRESHOLDS)), np.bool_)
    return Matches(
        ints, ints, np.zeros(0), table, table, np.zeros(0), ints, ints, ints, ints, ints, flags, flags, confusion
    )


def _by_image(entries: Iterable[CocoDict], index: Mapping[int, int]) -> dict[int, list[CocoDict]]:
    grouped: dict[int, list[CocoDict]] = defaultdict(list)
    for entry in entries:
        if entry["category_id"] in index:
            grouped[entry["image_id"]].append(entry)
    return grouped


def _match_image(
    rules: ScoringRules,
    image: CocoDict,
    objects: list[CocoDict],
    detections: list[CocoDict],
    index: Mapping[int, int],
    min_score: float,
) -> Matches:
    detections = _best(detections, rules.limits[-1])
    scores = np.array([one["score"] for one in detections], np.float64)
    categories = np.array([index[one["category_id"]] for one in detections], np.int64)
    owners = np.array([index[one["category_id"]] for one in objects], np.int64)
    crowd = np.array([bool(one.get("iscrowd", 0)) for one in objects], np.bool_)
    unmarked = [rules.iou_type == "keypoints" and not one.get("num_keypoints") for one in objects]
    ignored = crowd | np.array(unmarked, np.bool_)
    overlaps = _overlaps(rules, image, objects, detections)
    same = categories[:, None] == owners
    hits, skipped, partner = _match(np.where(same, overlaps, -1.0), ignored, crowd)
    taken = np.zeros(len(objects), np.bool_)
    taken[partner[hits[:, 0], 0]] = True
    kinds, targets = _kinds(overlaps, same, ignored, hits[:, 0], skipped[:, 0], partner[:, 0])
    errors = np.isin(kinds, (CLASSIFICATION, LOCALISATION))
    covered = np.zeros(len(objects), np.bool_)
    covered[targets[errors]] = True
    ids = np.array([one["id"] for one in objects] + [_NONE], np.int64)  # the last is what no target points to
    counts = ~ignored
    return Matches(
        np.full(len(detections), image["id"], np.int64),
        categories,
        scores,
        hits,
        skipped,
        np.where(same & counts, overlaps, 0.0).max(axis=1, initial=0.0),
        kinds,
        ids[targets],
        ids[:-1][counts],
        np.full(int(counts.sum()), image["id"], np.int64),
        owners[counts],
        taken[counts],
        (covered & ~taken)[counts],
        _confusion(overlaps, categories, owners, ignored, scores >= min_score, len(index)),
    )


def _best(detections: list[CocoDict], limit: int) -> list[CocoDict]:
    """Best first, and of each category no more than count."""
    order = np.argsort([-one["score"] for one in detections], kind="stable")
    kept: list[CocoDict] = []
    counts: dict[int, int] = defaultdict(int)
    for index in order:
        counts[detections[index]["category_id"]] += 1
        if counts[detections[index]["category_id"]] <= limit:
            kept.append(detections[index])
    return kept


def _match(
    overlaps: FloatArray, ignored: npt.NDArray[np.bool_], crowd: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], _Ints]:
    """COCO's matching at all thresholds.

    Args:
        overlaps: [D, G], best detections first; -1 with objects of other categories.
        ignored: [G] does not count.
        crowd: [G] can be matched any number of times.

    Returns:
        [D, 10] matched with an object that counts; with one that does not; the matched object, -1 for none.
    """
    shape = (overlaps.shape[0], len(THRESHOLDS))
    hits, skipped = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    partner = np.full(shape, _NONE, np.int64)
    free = np.ones((len(THRESHOLDS), overlaps.shape[1]), np.bool_)
    for detection in np.flatnonzero((overlaps >= THRESHOLDS[0]).any(axis=1)):
        possible = (free | crowd) & (overlaps[detection] >= THRESHOLDS[:, None])
        real = possible & ~ignored
        some_real = real.any(axis=1)
        chosen = np.where(some_real[:, None], real, possible)  # one that counts goes before one that does not
        # Of equal overlaps COCO takes the last object.
        best = overlaps.shape[1] - 1 - np.argmax(np.where(chosen, overlaps[detection], -2.0)[:, ::-1], axis=1)
        some = chosen.any(axis=1)
        hits[detection], skipped[detection] = some_real, some & ~some_real
        partner[detection] = np.where(some, best, _NONE)
        rows = np.flatnonzero(some)
        free[rows, best[rows]] = False
    return hits, skipped, partner


def _kinds(
    overlaps: FloatArray,
    same: npt.NDArray[np.bool_],
    ignored: npt.NDArray[np.bool_],
    hit: npt.NDArray[np.bool_],
    skipped: npt.NDArray[np.bool_],
    partner: _Ints,
) -> tuple[_Ints, _Ints]:
    """Kind of each detection and the object that it is about, -1 for none; TIDE's order of questions."""
    count, objects = overlaps.shape
    if not objects:
        return np.full(count, ON_BACKGROUND), np.full(count, _NONE)
    own = np.where(same & ~ignored, overlaps, 0.0)
    other = np.where(~same & ~ignored, overlaps, 0.0)
    best_own, best_other = own.max(axis=1), other.max(axis=1)
    conditions = [
        hit,
        skipped,
        (best_own >= BACKGROUND) & (best_own < FOREGROUND),
        best_other >= FOREGROUND,
        best_own >= FOREGROUND,
        np.maximum(best_own, best_other) < BACKGROUND,
    ]
    at_own, at_other = own.argmax(axis=1), other.argmax(axis=1)
    none = np.full(count, _NONE)
    names = [RIGHT, IGNORED, LOCALISATION, CLASSIFICATION, DUPLICATE, ON_BACKGROUND]
    kinds = np.select(conditions, [np.full(count, name) for name in names], default=BOTH)
    targets = np.select(conditions, [partner, none, at_own, at_other, at_own, none], default=at_other)
    return kinds.astype(np.int64), targets.astype(np.int64)


def _confusion(
    overlaps: FloatArray,
    categories: _Ints,
    owners: _Ints,
    ignored: npt.NDArray[np.bool_],
    wanted: npt.NDArray[np.bool_],
    number: int,
) -> _Ints:
    """Each detection, best first, takes the free object of any category that it overlaps most, from 0.50 on."""
    counts = np.zeros((number + 1, number + 1), np.int64)
    free = ~ignored
    for detection in np.flatnonzero(wanted):
        possible = np.where(free, overlaps[detection], -1.0)
        best = int(possible.argmax()) if len(possible) else 0
        if len(possible) and possible[best] >= FOREGROUND:
            free[best] = False
            counts[owners[best], categories[detection]] += 1
        elif not (overlaps[detection][ignored] >= FOREGROUND).any():
            counts[number, categories[detection]] += 1
    counts[:, number] += np.bincount(owners[free], minlength=number + 1)
    return counts


def _overlaps(rules: ScoringRules, image: CocoDict, objects: list[CocoDict], detections: list[CocoDict]) -> FloatArray:
    """[D, G] IoU or OKS of all detections with all objects, as COCO computes it."""
    if not objects or not detections:
        return np.zeros((len(detections), len(objects)))
    crowd = [int(bool(one.get("iscrowd", 0))) for one in objects]
    if rules.iou_type == "keypoints":
        return _keypoint_similarity(objects, detections, rules.sigmas)
    if rules.iou_type == "bbox":
        boxes = [np.array([_box(one) for one in entries], np.float64) for entries in (detections, objects)]
        return np.asarray(coco_mask.iou(*boxes, crowd))
    masks = [[_run_lengths(one["segmentation"], image) for one in entries] for entries in (detections, objects)]
    return np.asarray(coco_mask.iou(*masks, crowd))


def _box(entry: CocoDict) -> Any:
    return entry["bbox"] if entry.get("bbox") else coco_mask.toBbox(entry["segmentation"]).tolist()


def _run_lengths(shape: Any, image: CocoDict) -> CocoDict:
    """COCO's compressed run lengths of whatever an entry has."""
    if isinstance(shape, dict) and not isinstance(shape["counts"], list):
        return shape
    runs = coco_mask.frPyObjects(shape, image["height"], image["width"])
    merged: CocoDict = coco_mask.merge(runs) if isinstance(runs, list) else runs
    return merged


def _keypoint_similarity(
    objects: list[CocoDict], detections: list[CocoDict], sigmas: tuple[float, ...] | None
) -> FloatArray:
    """Object keypoint similarity of COCO's keypoint scoring, also to objects without any keypoint marked."""
    points = np.array([one["keypoints"] for one in detections], np.float64).reshape(len(detections), -1, 3)[..., :2]
    variances = (2 * np.array(sigmas if sigmas is not None else np.array(_SIGMAS) / 10)) ** 2
    similarity = np.zeros((len(detections), len(objects)))
    for index, one in enumerate(objects):
        truth = np.array(one["keypoints"], np.float64).reshape(-1, 3)
        marked = truth[:, 2] > 0
        if marked.any():
            distance = ((points - truth[:, :2]) ** 2).sum(axis=-1)
        else:
            x, y, w, h = one["bbox"]
            low, high = np.array([x - w, y - h]), np.array([x + 2 * w, y + 2 * h])
            beyond = np.maximum(low - points, 0) + np.maximum(points - high, 0)
            distance, marked = (beyond**2).sum(axis=-1), np.ones(len(truth), np.bool_)
        exponent = distance / variances / (one["area"] + np.spacing(1)) / 2
        similarity[:, index] = np.exp(-exponent[:, marked]).mean(axis=1)
    return similarity
