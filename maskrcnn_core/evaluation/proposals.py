"""Average recall of proposals, equal to what pycocotools computes with `useCats = 0` (Hosang et al., PAMI 2016).

The recall at K proposals is the share of annotated objects that one of an image's best K proposals finds, each proposal
at most one object; averaged over the IoU thresholds 0.50 to 0.95 it is AR@K. Crowd regions are no objects to find.
Counts of parts of the images add up exactly, so that no process needs all proposals at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.annotations import Annotations, CocoDict
from maskrcnn_core.evaluation.coco import NOT_DEFINED

LIMITS = (10, 100, 1000)
PROPOSAL_STAT_NAMES = ("AR@10", "AR@100", "AR@1000", "ARs@1000", "ARm@1000", "ARl@1000")
"""The numbers: recall at the best 10, 100 and 1000 proposals, and at 1000 of small, medium and large objects."""

_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_AREAS = np.array([[0.0, 1e10], [0.0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]])
_IMAGES_AT_ONCE = 32

_Floats = npt.NDArray[np.float64]
_Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ObjectBoxes:
    """Annotated objects of one image, crowd regions left out.

    Attributes:
        boxes: [G, 4] float64: x, y, width, height in original pixels.
        areas: [G] float64, as annotated.
    """

    boxes: _Floats
    areas: _Floats


@dataclass(frozen=True)
class RecallCounts:
    """Objects found in a part of the images; the sum of two parts is that of both.

    Attributes:
        hits: [3 limits, 4 areas, 10 thresholds] objects that a proposal found.
        objects: [4 areas] objects there are.
        proposals: looked at, at most 1000 of an image.
    """

    hits: _Counts
    objects: _Counts
    proposals: int = 0

    def __add__(self, other: "RecallCounts") -> "RecallCounts":
        return RecallCounts(self.hits + other.hits, self.objects + other.objects, self.proposals + other.proposals)


def no_recall() -> RecallCounts:
    """The counts of no images."""
    return RecallCounts(
        np.zeros((len(LIMITS), len(_AREAS), len(_THRESHOLDS)), np.int64), np.zeros(len(_AREAS), np.int64)
    )


def annotated_boxes(annotations: Annotations) -> dict[int, ObjectBoxes]:
    """The objects of every image of an annotation file by image id; images without objects have empty ones."""
    return {image_id: object_boxes(entries) for image_id, entries in annotations.by_image().items()}


def object_boxes(entries: Sequence[CocoDict]) -> ObjectBoxes:
    """The objects among the clean annotations of one image."""
    objects = [entry for entry in entries if not entry["iscrowd"]]
    return ObjectBoxes(
        np.array([entry["bbox"] for entry in objects], np.float64).reshape(-1, 4),
        np.array([entry["area"] for entry in objects], np.float64),
    )


def proposals_of_rows(column: pa.Array) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Boxes [R, 4] (x, y, width, height) and scores [R] of each row of a column `proposals`.

    Raises:
        AnnotationError: a box is not four numbers.
    """
    structs = pc.list_flatten(column)
    boxes = pc.list_flatten(pc.struct_field(structs, "bbox")).to_numpy(zero_copy_only=False).astype(np.float32)
    scores = pc.struct_field(structs, "score").to_numpy(zero_copy_only=False).astype(np.float32)
    if len(boxes) != 4 * len(scores):
        raise AnnotationError("a proposal's bbox has not 4 numbers, expected x, y, width, height")
    ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False))[:-1]
    return list(zip(np.split(boxes.reshape(-1, 4), ends), np.split(scores, ends), strict=True)) if len(column) else []


def count_recall(
    images: Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], ObjectBoxes]],
) -> RecallCounts:
    """Counts over some images.

    Args:
        images: of each its proposals' boxes [R, 4] (x, y, width, height in original pixels), their scores [R], and its
            objects.
    """
    total, waiting = no_recall(), []
    for image in images:
        waiting.append(image)
        if len(waiting) == _IMAGES_AT_ONCE:
            total, waiting = total + _count_batch(waiting), []
    return total + _count_batch(waiting) if waiting else total


def summarize_recall(counts: RecallCounts) -> tuple[float, ...]:
    """The numbers that `PROPOSAL_STAT_NAMES` names; -1 where there is no object of that size."""
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = counts.hits / counts.objects[None, :, None]
    defined = counts.objects > 0
    values = [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]
    return tuple(float(np.mean(recall[limit, area])) if defined[area] else NOT_DEFINED for limit, area in values)


def _count_batch(
    images: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], ObjectBoxes]],
) -> RecallCounts:
    """All images, sizes and thresholds at once.

    Only the proposals go one by one, as the rule demands: each in turn takes the object that it overlaps most among
    those that are still free.
    """
    overlaps, ranks, proposals = _candidates(images)
    wanted = np.zeros((len(images), len(_AREAS), overlaps.shape[2]), np.bool_)
    for number, (_, _, objects) in enumerate(images):
        inside = (objects.areas >= _AREAS[:, :1]) & (objects.areas <= _AREAS[:, 1:])
        wanted[number, :, : len(objects.areas)] = inside
    free = np.repeat(wanted[:, :, None], len(_THRESHOLDS), axis=2)  # [N, 4, 10, G]
    hits = np.zeros((len(LIMITS), len(_AREAS), len(_THRESHOLDS)), np.int64)
    for candidate in range(overlaps.shape[1]):
        overlap = overlaps[:, None, None, candidate]  # [N, 1, 1, G]
        possible = np.where(free & (overlap >= _THRESHOLDS[:, None]), overlap, -1.0)
        last_first = possible[..., ::-1]  # of equal overlaps COCO takes the last object
        best = np.argmax(last_first, axis=-1)[..., None]
        hit = np.take_along_axis(last_first, best, axis=-1) >= 0.0
        taken = overlaps.shape[2] - 1 - best
        np.put_along_axis(free, taken, np.take_along_axis(free, taken, axis=-1) & ~hit, axis=-1)
        for index, limit in enumerate(LIMITS):
            hits[index] += (hit[..., 0] & (ranks[:, candidate] < limit)[:, None, None]).sum(axis=0)
    return RecallCounts(hits, wanted.sum(axis=(0, 2)), proposals)


def _candidates(
    images: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], ObjectBoxes]],
) -> tuple[_Floats, _Counts, int]:
    """Proposals that overlap an object at least by the lowest threshold; the others can find nothing.

    Returns:
        [N, C, G] overlaps with each object, best proposals first, 0 where padded; [N, C] rank of each in the order of
        scores; how many proposals there were.
    """
    parts, count = [], 0
    for boxes, scores, objects in images:
        order = np.argsort(-scores, kind="stable")[: LIMITS[-1]]
        overlap = _box_overlaps(boxes[order].astype(np.float64), objects.boxes)
        rank = np.flatnonzero((overlap >= _THRESHOLDS[0]).any(axis=1))
        parts.append((overlap[rank], rank))
        count += len(order)
    most = max(len(rank) for _, rank in parts)
    overlaps = np.zeros((len(images), most, max([1, *(overlap.shape[1] for overlap, _ in parts)])))
    ranks = np.zeros((len(images), most), np.int64)
    for number, (overlap, rank) in enumerate(parts):
        overlaps[number, : len(rank), : overlap.shape[1]] = overlap
        ranks[number, : len(rank)] = rank
    return overlaps, ranks, count


def _box_overlaps(proposals: _Floats, objects: _Floats) -> _Floats:
    """[R, G] IoU of boxes x, y, width, height, with the very operations of COCO's C code."""
    width, height = (
        np.minimum((proposals[:, axis] + proposals[:, axis + 2])[:, None], objects[:, axis] + objects[:, axis + 2])
        - np.maximum(proposals[:, None, axis], objects[:, axis])
        for axis in (0, 1)
    )
    common = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    union = (proposals[:, 2] * proposals[:, 3])[:, None] + objects[:, 2] * objects[:, 3] - common
    overlaps: _Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return overlaps


def recall_metrics(stats: Sequence[float]) -> Mapping[str, float]:
    """The defined ones of the numbers by name."""
    return {name: value for name, value in zip(PROPOSAL_STAT_NAMES, stats, strict=True) if value != NOT_DEFINED}
