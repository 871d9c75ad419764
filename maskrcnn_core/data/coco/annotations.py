"""One annotation of a COCO file -> a clean entry that training, drawing and every scoring engine can read unchecked.

| in the file | outcome |
|---|---|
| bbox missing or null where there is a mask | the box of the mask; null is counted |
| bbox [], of zeros, inverted, NaN, of text, outside of the image, where there is a mask | the box of the mask; mended |
| the same without a usable mask | the annotation is left out |
| bbox beyond the image | as it is; farther than `segmentation.reach`: cut to the image, mended |
| numbers as text ("720") | these numbers; mended |
| area missing; null, negative, NaN, infinite | the pixels of the mask, else the box; the second is mended. 0 is 0 |
| iscrowd missing, false, true, 1.0 | 0, 0, 1, 1 |
| iscrowd null, "0", "true" | 0, 0, 1; mended |
| iscrowd anything else (2, "x") | 1: a region to ignore; mended |
| segmentation | see `masks` |
| keypoints missing, null, [] | none; an object without any |
| keypoints of another number than the category's, or no list | none; mended |
| a coordinate null, not finite or absurdly far; visibility null or below 0 | that keypoint is not annotated; mended |
| visibility above 2, or between 0 and 2 | 2; mended |

Whatever the reader does not need is not looked at: neither keypoints for a model of masks, nor, where only boxes count,
what is wrong with a mask.

An object without a usable mask whose box is good is not background. In training on masks it becomes a region to ignore,
as a crowd is (`coco.load_coco`). In scoring it counts for boxes, as its box is as good as any; for masks it is a region
to ignore of its box's shape (`evaluation.annotations`): a detection there may be right, and nobody can tell.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from maskrcnn_core.data.coco.entry_faults import FaultKind, FaultList
from maskrcnn_core.data.coco.masks import MaskShape, extent, read_mask, sound_runs
from maskrcnn_core.data.coco.sections import CocoDict
from maskrcnn_core.data.coco.values import flag, number, shown, whole
from maskrcnn_core.data.segmentation import reach

_FARTHEST_KEYPOINT = 1e6  # pixels
_LARGEST_SIDE_UNKNOWN = 1 << 20  # of an image whose size the file does not say
_ENTRIES_AT_ONCE = 1000


@dataclass(frozen=True)
class Asked:
    """What a reader wants to know of annotations.

    Attributes:
        masks: faults of masks matter.
        keypoints: number of keypoints by category id; empty = keypoints do not matter.
    """

    masks: bool = True
    keypoints: Mapping[int, int] | None = None


def read_annotation(
    entry: CocoDict, image: CocoDict, asked: Asked, faults: FaultList, has_sound_runs: bool = False
) -> CocoDict | None:
    """A clean entry, or None where nothing of it can be used.

    Args:
        entry: as in the file, with ids that `CocoSections` has looked at; not changed.
        image: its image's clean entry.
        asked: what matters.
        faults: what was wrong goes there.
        has_sound_runs: its segmentation is one of `masks.sound_runs`.

    Returns:
        `id`, `image_id`, `category_id` (whole numbers), `bbox` (x, y, width, height above 0, as in the file where it is
        sound), `area` (0 or more), `iscrowd` (0 or 1); `segmentation` where there is a usable mask (polygons or run
        lengths of the image's size); `keypoints` and `num_keypoints` where they are asked for and there are any.
    """
    reading = _Reading(entry, image, faults)
    crowd = reading.crowd()
    mask, why = reading.mask(has_sound_runs)
    box = reading.box(mask)
    if box is None:
        return None
    if why and asked.masks and not crowd:
        reading.say("no mask" if mask is None else "mask", why)
    ids = entry["id"], entry["image_id"], entry["category_id"]
    if not (type(ids[0]) is type(ids[1]) is type(ids[2]) is int):
        ids = whole(ids[0]), whole(ids[1]), whole(ids[2])
    clean = {"id": ids[0], "image_id": ids[1], "category_id": ids[2], "bbox": box}
    clean |= {"area": reading.area(mask, box), "iscrowd": crowd}
    if mask is not None:
        clean["segmentation"] = mask
    if asked.keypoints and ids[2] in asked.keypoints:
        clean |= reading.keypoints(asked.keypoints[ids[2]])
    return clean


def read_annotations(
    entries: Iterable[CocoDict],
    images: Mapping[int, CocoDict],
    asked: Asked,
    faults: FaultList,
    left_out: Collection[int] = (),
) -> Iterator[CocoDict]:
    """The clean ones of many entries, in their order.

    Args:
        entries: with ids that `CocoSections` has looked at.
        images: clean entries by id.
        asked, faults: as of `read_annotation`.
        left_out: ids of images that are not used; their annotations go without a word. Annotations of other images that
            are not there are faults.
    """
    remaining = iter(entries)
    while some := list(islice(remaining, _ENTRIES_AT_ONCE)):
        owners = [images.get(entry["image_id"]) for entry in some]  # 1.0 finds 1
        sound = sound_runs(
            (entry.get("segmentation"), image) for entry, image in zip(some, owners, strict=True) if image is not None
        )
        for entry, image in zip(some, owners, strict=True):
            if image is not None:
                clean = read_annotation(entry, image, asked, faults, next(sound))
                if clean is not None:
                    yield clean
            elif entry["image_id"] not in left_out:
                what = f"image_id {whole(entry['image_id'])} is not in section 'images'"
                faults.add("object", f"annotation {whole(entry['id'])}", what)


class _Reading:
    """One annotation while it is read."""

    def __init__(self, entry: CocoDict, image: CocoDict, faults: FaultList) -> None:
        self._entry, self._faults = entry, faults
        self._width, self._height = image.get("width", 0), image.get("height", 0)
        self._counted = False
        self._pixels: tuple[list[float], float] | None = None

    def crowd(self) -> int:
        value = self._entry.get("iscrowd", 0)
        if type(value) is int and value in (0, 1):
            return value
        iscrowd = 0 if value is None else flag(value)
        if value is None or isinstance(value, str) or iscrowd is None:
            self.say(
                "field", f"iscrowd {shown(value)}, " + ("a region to ignore" if iscrowd is None else f"as {iscrowd}")
            )
        return 1 if iscrowd is None else iscrowd

    def mask(self, has_sound_runs: bool) -> tuple[MaskShape | None, str]:
        raw: Any = self._entry.get("segmentation")
        if not (self._width and self._height):
            return None, ""  # nobody can tell whether it lies in the image
        if has_sound_runs:
            return {"size": [*self._size()], "counts": raw["counts"]}, ""
        return (None, "no segmentation") if raw is None else read_mask(raw, *self._size(), self._entry.get("bbox"))

    def box(self, mask: MaskShape | None) -> list[Any] | None:
        raw = self._entry.get("bbox")
        if type(raw) is list and len(raw) == 4 and self._is_near(raw):
            return raw
        values = self._given_box()
        if values is None or values[2] <= 0 or values[3] <= 0 or self._is_outside(values):
            return self._box_of_mask(raw, mask)
        if not self._is_near(values):
            values = self._clipped(values)
            self.say("field", f"bbox {shown(raw)}, cut to the image")
        elif not isinstance(raw, tuple):
            self.say("field", f"bbox {shown(raw)}, with text for numbers")
        return values

    def area(self, mask: MaskShape | None, box: Sequence[float]) -> float:
        raw: Any = self._entry.get("area")
        if type(raw) in (int, float) and 0 <= raw < 1e300:
            area: float = raw
            return area
        value = number(raw)
        if value is None or value < 0:
            of_mask = self._extent(mask)
            value = float(box[2]) * float(box[3]) if of_mask is None else of_mask[1]
        if "area" in self._entry:
            self.say("field", f"area {shown(raw)}, as {value:g}")
        return value

    def keypoints(self, count: int) -> CocoDict:
        raw = self._entry.get("keypoints")
        if raw is None or raw == []:
            return {}
        if not isinstance(raw, list) or len(raw) != 3 * count:
            got = f"{len(raw)} numbers" if isinstance(raw, list) else shown(raw, 40)
            self.say("keypoints", f"keypoints: {got}, expected 3 for each of the category's {count}; left out")
            return {}
        points, why = raw, ""
        if not _are_sound(raw):
            points, why = _mended_keypoints(raw)
        if why:
            self.say("keypoints", f"keypoints: {why}")
        given = self._entry.get("num_keypoints")
        visible = sum(visibility > 0 for visibility in points[2::3])
        return {"keypoints": points, "num_keypoints": given if type(given) is int else visible}

    def say(self, kind: FaultKind, what: str) -> None:
        where = f"annotation {whole(self._entry['id'])} of image {whole(self._entry['image_id'])}"
        self._faults.add(kind, where, what)

    def _size(self) -> tuple[int, int]:
        return self._height, self._width

    def _room(self) -> tuple[int, int]:
        return self._width or _LARGEST_SIDE_UNKNOWN, self._height or _LARGEST_SIDE_UNKNOWN

    def _given_box(self) -> list[float] | None:
        raw = self._entry.get("bbox")
        if not isinstance(raw, list | tuple) or len(raw) != 4:
            return None
        values = [number(value) for value in raw]
        return None if None in values else values  # type: ignore[return-value]

    def _is_near(self, box: Sequence[Any]) -> bool:
        """A box of numbers with an extent, in or near its image: one that all may read as it is."""
        x, y, width, height = box
        try:
            if not (width > 0 and height > 0):
                return False
            across, down = self._room()
            far = reach(down, across)
            right, bottom = x + width, y + height
            return bool(
                -far <= x < across and -far <= y < down and 0 < right <= across + far and 0 < bottom <= down + far
            )
        except TypeError:
            return False

    def _is_outside(self, box: Sequence[float]) -> bool:
        across, down = self._room()
        return box[0] >= across or box[1] >= down or box[0] + box[2] <= 0 or box[1] + box[3] <= 0

    def _clipped(self, box: Sequence[float]) -> list[float]:
        across, down = self._room()
        x1, y1 = max(box[0], 0.0), max(box[1], 0.0)
        return [x1, y1, min(box[0] + box[2], float(across)) - x1, min(box[1] + box[3], float(down)) - y1]

    def _box_of_mask(self, raw: Any, mask: MaskShape | None) -> list[float] | None:
        of_mask = self._extent(mask)
        if of_mask is None:
            where = f" in its image of {self._width} x {self._height} pixels" if self._width else ""
            self.say("object", f"bbox {shown(raw)}, expected x, y, width, height above 0{where}; and no usable mask")
            return None
        if "bbox" in self._entry:
            self.say("field", f"bbox {shown(raw)}, the box of its mask is taken")
        return of_mask[0]

    def _extent(self, mask: MaskShape | None) -> tuple[list[float], float] | None:
        if not self._counted:
            self._pixels, self._counted = None if mask is None else extent(mask, *self._size()), True
        return self._pixels


def _are_sound(points: list[Any]) -> bool:
    try:
        total = sum(points)
        near = total == total and min(points) >= -_FARTHEST_KEYPOINT and max(points) <= _FARTHEST_KEYPOINT
        return near and all(type(visibility) in (int, float) and visibility in (0, 1, 2) for visibility in points[2::3])
    except TypeError:
        return False


def _mended_keypoints(raw: list[Any]) -> tuple[list[float], str]:
    points: list[float] = []
    why = ""
    for start in range(0, len(raw), 3):
        x, y, visibility = (number(value) for value in raw[start : start + 3])
        marked = visibility is not None and visibility > 0
        known = x is not None and y is not None and max(abs(x), abs(y)) <= _FARTHEST_KEYPOINT
        if marked and known:
            points += [x, y, visibility if visibility in (1, 2) else 2]  # type: ignore[list-item]
        else:
            points += [0, 0, 0]
        if (visibility is None or visibility not in (0, 1, 2) or not known) and not why:
            why = f"{shown(raw[start : start + 3])} of keypoint {start // 3}, taken as {points[-3:]}"
    return points, why
