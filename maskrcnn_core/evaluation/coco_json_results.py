"""Results of any other system: COCO's results format, checked entry by entry, and read as pycocotools' `loadRes` does.

pycocotools looks at the first result to know what all of them are. Where that has a box, the object is filed under
small, medium or large by the area of its box, for masks and keypoints too; without one, by the area of the mask or of
the rectangle around the keypoints, and the box is that of the mask. So the same detections with and without boxes have
other numbers by size, in pycocotools and here. Where a result that has a box lacks the mask that others have, the box's
rectangle is its mask, as there; where it lacks the box and has a mask, the box is the mask's.

A result with a fault is named by its number in the file, from 1 on; no engine sees what is not checked.
"""

import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_core.compressed_runs import FAULTS, check_texts
from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.annotations import CocoDict
from maskrcnn_core.evaluation.match_counts import BoxFacts, FoundFacts, box_facts
from maskrcnn_core.evaluation.scoring_states import IouType

_FARTHEST = 2.0**31  # pixels; no image reaches so far, and products of such numbers stay finite
_LARGEST_ID = 1 << 63
_NUMBERS = frozenset((int, float))
_MOST_OUTLINE = 4e6  # pixels around one polygon; pycocotools takes some 100 bytes for each
_MARGIN = 10.0  # pixels around an image beyond which a rectangle's edges change no pixel of it

Sizes = Mapping[int, tuple[int, int]]
"""(height, width) of images by id, as far as they are known."""


@dataclass(frozen=True)
class ResultsLayout:
    """What results have: boxes, or keypoints without them, if the first has; masks, if any has."""

    boxes: bool
    masks: bool
    keypoints: bool

    def joined(self, entry: CocoDict) -> "ResultsLayout":
        """The layout where this result is among them."""
        if self.masks or not entry.get("segmentation"):
            return self
        return ResultsLayout(self.boxes, True, self.keypoints)


def results_layout(first: CocoDict) -> ResultsLayout:
    """Layout of the results of which this is the first, as far as it tells.

    Args:
        first: checked.

    Raises:
        AnnotationError: it has neither box nor mask nor keypoints.
    """
    layout = ResultsLayout(*(bool(first.get(key)) for key in ("bbox", "segmentation", "keypoints")))
    if not (layout.boxes or layout.masks or layout.keypoints):
        raise AnnotationError("the first result has no bbox, segmentation or keypoints; expected COCO's results format")
    return layout


def checked_result(entry: Any, number: int) -> CocoDict:
    """A result whose numbers are numbers; whole ones as integers (1.0 is 1). Its mask is checked later.

    Args:
        entry: of the file.
        number: of the entry, from 1.

    Raises:
        AnnotationError: naming the result and the field.
    """
    if not isinstance(entry, dict):
        raise AnnotationError(f"result number {number} is {entry!r:.60}; expected COCO's results format")
    result = entry
    for key in ("image_id", "category_id"):
        value = entry.get(key)
        if type(value) is float and value.is_integer():
            value = int(value)
            result = {**result, key: value}
        if type(value) is not int or not -_LARGEST_ID <= value < _LARGEST_ID:
            raise _fault(entry, number, f"has {key} {entry.get(key)!r:.40}", "a whole number")
    if not _is_number(entry.get("score")):
        raise _fault(entry, number, f"has score {entry.get('score')!r:.40}", "a finite number")
    for key, count in (("bbox", 4), ("keypoints", None)):
        value = entry.get(key)
        if value is not None and value != [] and not _are_numbers(value, count):
            expected = (
                "four finite numbers x, y, width, height" if count else "finite numbers x, y, v for each keypoint"
            )
            raise _fault(entry, number, f"has {key} {value!r:.80}", expected)
    return result


def _is_number(value: Any) -> bool:
    return type(value) in _NUMBERS and abs(value) <= sys.float_info.max  # false for NaN


def _are_numbers(value: Any, count: int | None) -> bool:
    if not isinstance(value, list) or (len(value) != count if count else len(value) % 3):
        return False
    return _NUMBERS.issuperset(map(type, value)) and all(map(_FARTHEST.__gt__, map(abs, value)))  # false for NaN


def _fault(entry: CocoDict, number: int, got: str, expected: str) -> AnnotationError:
    return AnnotationError(
        f"result number {number} (image {entry.get('image_id')!r:.40}) {got}, expected {expected}; correct or remove it"
    )


@dataclass(frozen=True)
class FoundInResults:
    """Results on the images of a shard; see `shards.Found`. Made by `complete_results`.

    Attributes:
        entries: in the order of the file, with all that their layout says.
        layout: of the whole file.
        sizes: of the images.
        replaced: results without a mask, whose box is their mask.
    """

    entries: Sequence[CocoDict]
    layout: ResultsLayout
    sizes: Sizes
    replaced: int = 0

    def facts(self, category_ids: Collection[int], with_keypoints: Collection[int]) -> FoundFacts:
        """See `shards.Found`."""
        known = frozenset(category_ids)
        strange = [entry for entry in self.entries if entry["category_id"] not in known]
        pointed = frozenset(with_keypoints)
        numbers = Counter(
            len(entry.get("keypoints") or ()) // 3 for entry in self.entries if entry["category_id"] in pointed
        )
        return FoundFacts(
            detections=len(self.entries),
            unknown=Counter(str(entry["category_id"]) for entry in strange),
            first=min(((e["image_id"], e["category_id"], str(e["category_id"])) for e in strange), default=None),
            without_box=self._lacking("bbox" if self.layout.boxes else "segmentation"),
            without_mask=self._lacking("segmentation"),
            keypoint_numbers=numbers,
            any_keypoints=any(entry.get("keypoints") for entry in self.entries),
            categories=frozenset(entry["category_id"] for entry in self.entries),
            boxes_as_masks=self.replaced,
            boxes=self._box_facts(),
        )

    def results(self, iou_type: IouType) -> list[CocoDict]:
        """See `shards.Found`."""
        keys = ["bbox"] if self.layout.boxes else []
        if iou_type == "keypoints":
            keys.append("keypoints")
        elif iou_type == "segm" or not self.layout.boxes:
            keys.append("segmentation")
        return [
            {name: entry[name] for name in ("image_id", "category_id", "score", *keys)}
            for entry in self.entries
            if iou_type != "keypoints" or entry.get("keypoints")
        ]

    def _lacking(self, key: str) -> int:
        return sum(not entry.get(key) for entry in self.entries)

    def _box_facts(self) -> BoxFacts:
        boxed = [entry for entry in self.entries if entry.get("bbox")]
        sizes = np.array([self.sizes.get(entry["image_id"], (0, 0)) for entry in boxed], np.float64).reshape(-1, 2)
        return box_facts(np.array([entry["bbox"] for entry in boxed], np.float64).reshape(-1, 4), *sizes.T)


def complete_results(numbered: Sequence[tuple[int, CocoDict]], layout: ResultsLayout, sizes: Sizes) -> FoundInResults:
    """Results of some images with checked masks, all of them compressed run lengths, and what `loadRes` would add.

    Args:
        numbered: number in the file and entry of each, of `checked_result`.
        layout: of the whole file.
        sizes: of the images.

    Raises:
        AnnotationError: naming the first result whose mask is not what it should be.
    """
    masks = _checked_masks(numbered, sizes)
    entries, replaced = [], 0
    for (number, entry), mask in zip(numbered, masks, strict=True):
        if mask is not None and mask is entry["segmentation"] and (entry.get("bbox") or not layout.boxes):
            entries.append(entry)  # nothing to add
            continue
        made = {key: value for key, value in entry.items() if key != "segmentation"}
        if layout.boxes and not entry.get("bbox"):
            made["bbox"] = _box_of(entry, number, mask)
        size = sizes.get(entry["image_id"])
        if mask is None and layout.boxes and layout.masks and size is not None:
            mask = _rectangle(made["bbox"], *size)
            replaced += 1
        entries.append(made if mask is None else made | {"segmentation": mask})
    return FoundInResults(entries, layout, sizes, replaced)


def _box_of(entry: CocoDict, number: int, mask: CocoDict | None) -> list[float]:
    """The box of a result that has none among others that have: around its mask, or around its keypoints."""
    if mask is not None:
        box: list[float] = coco_mask.toBbox(mask).tolist()
        return box
    points = entry.get("keypoints")
    if not points:
        raise _fault(
            entry, number, "has neither bbox nor segmentation nor keypoints", "a bbox, as the first result has"
        )
    xs, ys = points[0::3], points[1::3]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _rectangle(box: Sequence[float], height: int, width: int) -> CocoDict:
    """Run lengths of a box's rectangle, the pixels that `loadRes` gives to a result without a mask."""
    x1, x2 = (min(max(x, -_MARGIN), width + _MARGIN) for x in (box[0], box[0] + box[2]))
    y1, y2 = (min(max(y, -_MARGIN), height + _MARGIN) for y in (box[1], box[1] + box[3]))
    return _drawn([[x1, y1, x1, y2, x2, y2, x2, y1]], height, width)


def _drawn(polygons: list[list[float]], height: int, width: int) -> CocoDict:
    merged: CocoDict = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return merged


def _checked_masks(numbered: Sequence[tuple[int, CocoDict]], sizes: Sizes) -> list[CocoDict | None]:
    """[D] compressed run lengths of each; None where there is no mask, or no size to draw a polygon in."""
    masks: list[CocoDict | None] = [None] * len(numbered)
    texts: list[int] = []
    for index, (number, entry) in enumerate(numbered):
        shape = entry.get("segmentation")
        if not shape:
            continue
        size = sizes.get(entry["image_id"])
        if _is_plain(shape, size):
            texts.append(index)
            masks[index] = shape
        elif isinstance(shape, dict):
            mask = _sized(shape, size, number, entry)
            if isinstance(mask["counts"], list):
                mask = coco_mask.frPyObjects(mask, *mask["size"])
            else:
                texts.append(index)
            masks[index] = mask
        else:
            _require_polygons(shape, size, number, entry)
            if size is not None:
                masks[index] = _drawn(shape, *size)
            elif not entry.get("bbox"):
                raise _fault(
                    entry, number, "has a polygon as its mask, of an image whose size is not known", "run lengths"
                )
    _require_sound([(numbered[index], masks[index] or {}) for index in texts])
    return masks


def _is_plain(shape: Any, size: tuple[int, int] | None) -> bool:
    """Run lengths as text, of the image's size, and nothing else: what `_sized` would make of them."""
    if size is None or type(shape) is not dict or len(shape) != 2 or type(shape.get("counts")) is not str:
        return False
    given = shape.get("size")
    return given == [*size] and type(given[0]) is type(given[1]) is int


def _sized(shape: CocoDict, size: tuple[int, int] | None, number: int, entry: CocoDict) -> CocoDict:
    """Run lengths of the image's size; of an uncompressed list also checked that they add up to it."""
    given, counts = shape.get("size"), shape.get("counts")
    if not isinstance(given, list) or len(given) != 2 or not all(_is_number(side) for side in given):
        raise _fault(entry, number, f"has a mask of size {given!r:.40}", "its image's [height, width]")
    if not (all(0 < side < _FARTHEST for side in given) and (size is None or tuple(given) == size)):
        hint = "; it is [width, height], turn it round" if size is not None and tuple(given) == size[::-1] else ""
        expected = "its image's [height, width]" + (f", [{size[0]}, {size[1]}]{hint}" if size else "")
        raise _fault(entry, number, f"has a mask of size {given!r:.40}", expected)
    height, width = (int(side) for side in given)
    if isinstance(counts, list):
        if not all(_is_number(run) and run >= 0 and run == int(run) for run in counts):
            raise _fault(entry, number, f"has run lengths {counts!r:.60}", "whole numbers from 0 on")
        if sum(counts) != height * width:
            raise _fault(entry, number, f"has run lengths of {sum(counts)} pixels", f"{height} x {width}")
        counts = [int(run) for run in counts]
    elif not isinstance(counts, str):
        raise _fault(entry, number, f"has run lengths {counts!r:.60}", "COCO's text or list 'counts'")
    return {"size": [height, width], "counts": counts}


def _require_sound(given: Sequence[tuple[tuple[int, CocoDict], CocoDict]]) -> None:
    """Compressed run lengths can be read, and end where their image ends."""
    pixels = np.array([mask["size"][0] * mask["size"][1] for _, mask in given], np.int64)
    runs = check_texts([mask["counts"] for _, mask in given], pixels)
    for index in np.flatnonzero(runs.faults)[:1].tolist():
        (number, entry), mask = given[index]
        got = f"has run lengths {mask['counts']!r:.60}: {FAULTS[runs.faults[index]]}"
        raise _fault(entry, number, got, f"{pixels[index]} pixels")


def _require_polygons(shape: Any, size: tuple[int, int] | None, number: int, entry: CocoDict) -> None:
    """Polygons of three points or more, no farther from the image than a few of its sides."""
    polygons = shape if isinstance(shape, list) else None
    if not polygons or not all(
        isinstance(one, list) and len(one) >= 6 and len(one) % 2 == 0 and all(map(_is_number, one)) for one in polygons
    ):
        raise _fault(
            entry, number, f"has segmentation {shape!r:.60}", "run lengths, or polygons of 6 finite numbers or more"
        )
    height, width = size or (_FARTHEST, _FARTHEST)
    reach = np.array([100 + 4 * width, 100 + 4 * height])
    for polygon in polygons:
        points = np.array(polygon, np.float64).reshape(-1, 2)
        if (np.abs(points) > reach).any():
            got = f"has a polygon that reaches from {points.min():.4g} to {points.max():.4g}"
            raise _fault(entry, number, got, f"one about its image of {width:g} x {height:g} pixels")
        around = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
        if size is not None and around > _MOST_OUTLINE:
            raise _fault(entry, number, f"has a polygon of {around:.4g} pixels around", f"at most {_MOST_OUTLINE:g}")
