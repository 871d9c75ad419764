"""The segmentation of one annotation, in any spelling that exporters use -> what can be drawn, and nothing else.

| in the file | outcome |
|---|---|
| polygons [[x, y, x, y, ...], ...] | as they are |
| one flat polygon [x, y, ...]; points [[x, y], ...]; polygons of points [[[x, y], ...], ...] | that polygon; mended |
| a part with an odd number of values, fewer than 3 points, or a value that is no number | that part goes; mended |
| coordinates farther outside than `segmentation.reach` (1e300, -2147483648) | the part is cut to its image; mended |
| run lengths as text, bytes or list | as they are; numbers of the list may have a point |
| run lengths inside of a list | that mask; several are united; mended |
| run lengths of size [width, height] | the reading whose box is the annotated one; mended. None is: no mask |
| runs below 0, beyond the image, that don't add up, torn text | no mask |
| nothing, [], [[]], all parts gone, all parts outside of the image | no mask |

"mended" and "no mask" come with a sentence. A polygon or run lengths that are sound, and yet cover no pixel, stay as
they are: COCO's scoring counts such objects.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

from maskrcnn_core.compressed_runs import check_texts
from maskrcnn_core.data.coco.values import number, shown, whole
from maskrcnn_core.data.segmentation import LONGEST_OUTLINE, nearby_polygon, object_mask, reach, run_lengths

MaskShape: TypeAlias = list["array[float]"] | dict[str, Any]
"""Polygons, or run lengths {"size": [height, width], "counts": text or list}."""

_SAME_BOX = 0.9  # IoU
_LONG_TEXT = 1 << 14  # characters from which on there is no gain in reading several masks at once


def read_mask(raw: Any, height: int, width: int, box: Any) -> tuple[MaskShape | None, str]:
    """What of a segmentation can be drawn.

    Args:
        raw: as in the file.
        height, width: of the image, pixels.
        box: of the annotation, x, y, width, height, as in the file; chooses between two readings.

    Returns:
        The mask, None where nothing can be used; and what was wrong with it, empty where nothing was.
    """
    if type(raw) is list:
        polygons = _sound_polygons(raw, height, width)
        return (polygons, "") if polygons else _read_list(raw, height, width, box)
    if isinstance(raw, Mapping):
        return _read_runs(raw, height, width, box)
    return None, "no segmentation" if raw is None else f"segmentation of type {type(raw).__name__}"


def sound_runs(given: Iterable[tuple[Any, Mapping[str, Any]]]) -> Iterator[bool]:
    """Which of many segmentations are compressed run lengths in which nothing at all is odd, as most of a file's are.

    Where this says so, `read_mask` would give them back as they are; any other it has to look at.

    Args:
        given: of each segmentation, as in the file, and the clean entry of its image.
    """
    texts, pixels, looked_at = [], [], []
    for raw, image in given:
        is_text = type(raw) is dict and type(raw.get("counts")) is str and len(raw["counts"]) <= _LONG_TEXT
        if is_text and "width" in image and raw.get("size") == [image["height"], image["width"]]:
            texts.append(raw["counts"])
            pixels.append(image["height"] * image["width"])
        else:
            is_text = False
        looked_at.append(is_text)
    faults = iter(check_texts(texts, np.array(pixels, np.int64)).faults.tolist())
    return (is_text and next(faults) == 0 for is_text in looked_at)


def extent(mask: MaskShape, height: int, width: int) -> tuple[list[float], float] | None:
    """Box x, y, width, height and number of the pixels of a mask; None where it has none."""
    try:
        drawn = object_mask(mask, height, width)
    except ValueError:  # an outline of millions of pixels
        return None
    h, w = drawn.pixels.shape
    return ([float(drawn.left), float(drawn.top), float(w), float(h)], float(drawn.pixels.sum())) if h else None


def _sound_polygons(raw: list[Any], height: int, width: int) -> "list[array[float]] | None":
    """The polygons of a list in which nothing at all is odd; None for any other. Most of a file goes here."""
    far = reach(height, width)
    least, most, inside = -far, min(height, width) + far, False
    polygons = []
    for part in raw:
        if type(part) is not list or len(part) < 6 or len(part) % 2:
            return None
        try:
            low, high, total = min(part), max(part), sum(part)
            if not (low >= least and high <= most and total == total):  # not a number is not equal to itself
                return None
            points = array("d", part)  # a quarter of the memory of Python's floats
        except (TypeError, OverflowError):
            return None
        if len(points) * (high - low) > LONGEST_OUTLINE:
            return None
        inside = inside or (0 < points[0] < width and 0 < points[1] < height) or _is_inside(points, height, width)
        polygons.append(points)
    return polygons if inside else None


def _read_list(raw: list[Any], height: int, width: int, box: Any) -> tuple[MaskShape | None, str]:
    masks = [part for part in raw if isinstance(part, Mapping)]
    if masks:
        return _united([part for part in raw if not isinstance(part, Mapping)], masks, height, width, box)
    parts, reason = _as_parts(raw)
    reasons = [reason] if reason else []
    polygons = []
    for part in parts:
        points, why = _read_polygon(part, height, width)
        reasons += [why] if why else []
        if points is not None:
            polygons.append(points)
    what = "; ".join(dict.fromkeys(reasons))
    if not polygons:
        return None, f"segmentation: {what}" if what else "no segmentation"
    if not any(_is_inside(points, height, width) for points in polygons):
        return None, f"segmentation outside of its image of {width} x {height} pixels (width x height)"
    return polygons, f"segmentation: {what}" if what else ""


def _as_parts(raw: list[Any]) -> tuple[list[Any], str]:
    """The polygons of a list, flat, and what was odd about the spelling."""
    if raw and all(number(value) is not None for value in raw):
        return [raw], "a flat list, taken for one polygon"
    if len(raw) >= 3 and all(_is_point(part) for part in raw):
        return [[value for point in raw for value in point]], "a list of points, taken for one polygon"
    reason = ""
    parts = []
    for part in raw:
        if isinstance(part, list) and part and all(_is_point(point) for point in part):
            part, reason = [value for point in part for value in point], "a polygon as a list of points"
        parts.append(part)
    return parts, reason


def _is_point(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(number(one) is not None for one in value)


def _read_polygon(part: Any, height: int, width: int) -> "tuple[array[float] | None, str]":
    if not isinstance(part, list | tuple | array):
        return None, f"a part {shown(part, 30)}, expected a polygon x, y, x, y, ...; left out"
    if len(part) < 6 or len(part) % 2:
        return None, f"a polygon of {len(part)} numbers, expected x, y of at least 3 points; left out"
    values = [number(value) for value in part]
    if None in values:
        return None, f"a polygon with {shown(part[values.index(None)], 30)}, expected finite numbers; left out"
    points = np.array(values, np.float64)
    try:
        near = nearby_polygon(points, height, width)
    except ValueError as error:
        return None, f"{error}; left out"
    if near is points:
        return array("d", points.tolist()), ""
    what = f"coordinates as far as {np.abs(points).max():.4g}, cut to the image"
    return (array("d", near.tolist()), what) if len(near) else (None, f"{what}: nothing is left")


def _is_inside(points: "array[float]", height: int, width: int) -> bool:
    xs, ys = points[::2], points[1::2]
    return max(xs) > 0 and max(ys) > 0 and min(xs) < width and min(ys) < height


def _united(others: list[Any], masks: list[Any], height: int, width: int, box: Any) -> tuple[MaskShape | None, str]:
    """Run lengths in a list, where COCO has them without one; polygons may stand beside them."""
    shapes, reasons = [], ["run lengths inside of a list"]
    polygons, why = _read_list(others, height, width, box) if others else (None, "")
    for shape, why_one in [(polygons, why), *(_read_runs(one, height, width, box) for one in masks)]:
        if why_one:
            reasons.append(why_one.removeprefix("segmentation: "))
        if shape is not None:
            shapes.append(shape)
    what = f"segmentation: {'; '.join(dict.fromkeys(reasons))}"
    if len(shapes) < 2:
        return (shapes[0] if shapes else None), what
    encoded = [_encoded(run_lengths(shape, height, width), height, width) for shape in shapes]
    merged = coco_mask.merge(encoded)
    return {"size": [height, width], "counts": merged["counts"].decode()}, what


def _encoded(runs: Any, height: int, width: int) -> Any:
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


def _read_runs(raw: Mapping[str, Any], height: int, width: int, box: Any) -> tuple[MaskShape | None, str]:
    size, counts = raw.get("size"), raw.get("counts")
    if size != [height, width]:
        sides = [whole(side) for side in size] if isinstance(size, list | tuple) and len(size) == 2 else []
        if sides == [width, height]:
            return _exchanged(counts, height, width, box)
        if sides != [height, width]:
            return None, f"segmentation: run lengths of size {shown(size, 40)}, expected [{height}, {width}]"
    shape = {"size": [height, width], "counts": _plain_counts(counts)}
    try:
        run_lengths(shape, height, width)
    except (ValueError, TypeError, OverflowError) as error:
        return None, f"segmentation: {error}"[:200]
    return shape, ""


def _plain_counts(counts: Any) -> Any:
    if isinstance(counts, bytes):
        return counts.decode("latin-1")
    if isinstance(counts, list | tuple) and set(map(type, counts)) != {int}:
        wholes = [whole(count) for count in counts]
        return list(counts) if None in wholes else wholes
    return counts


def _exchanged(counts: Any, height: int, width: int, box: Any) -> tuple[MaskShape | None, str]:
    """Run lengths that say [width, height]: of the image after all, or of the image turned over its diagonal."""
    what = f"segmentation: run lengths of size [{width}, {height}], expected [height, width] [{height}, {width}]"
    plain = _plain_counts(counts)
    try:
        own = {"size": [height, width], "counts": plain}
        run_lengths(own, height, width)
        turned = object_mask({"size": [width, height], "counts": plain}, width, height)
    except (ValueError, TypeError, OverflowError):
        return None, what
    if _agree(extent(own, height, width), box):
        return own, f"{what}; taken for these"
    x, y, (w, h) = turned.top, turned.left, turned.pixels.shape
    if not _agree(([float(x), float(y), float(w), float(h)], 1.0) if turned.pixels.size else None, box):
        return None, f"{what}; read in no way it lies in its box"
    image = np.zeros((height, width), np.uint8, order="F")
    image[y : y + h, x : x + w] = turned.pixels.T
    text = coco_mask.encode(image)["counts"].decode()
    return {"size": [height, width], "counts": text}, f"{what}; taken for a mask turned over its diagonal"


def _agree(measured: tuple[list[float], float] | None, box: Any) -> bool:
    known = [number(value) for value in box] if isinstance(box, list | tuple) else []
    if measured is None or len(known) != 4 or None in known:
        return False
    (x, y, w, h), (u, v, p, q) = measured[0], [value or 0.0 for value in known]
    shared = max(min(x + w, u + p) - max(x, u), 0.0) * max(min(y + h, v + q) - max(y, v), 0.0)
    return shared >= _SAME_BOX * (w * h + p * q - shared)
