"""COCO instances and keypoints annotations: read, checked, in plain frozen structures (cocodataset.org/#format-data).

A fault that breaks the file (no JSON, a missing section, a duplicate or unknown id) always raises. A fault of a single
annotation (a box without extent, a polygon with two points) raises too, or drops the annotation and says so in
`CocoDataset.dropped`, as the caller chooses. Real COCO train2017 holds a few such annotations.
"""

import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from maskrcnn_core.config import Category
from maskrcnn_core.data.files import read_bytes
from maskrcnn_core.data.segmentation import ObjectMask, rasterise, run_lengths
from maskrcnn_core.errors import AnnotationError

__all__ = ["CocoDataset", "CocoImage", "CocoObject", "load_coco", "rasterise"]

_FAULTS_SHOWN = 5
Entry: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class CocoObject:
    """One annotation.

    Attributes:
        annotation_id: COCO annotation id.
        category_id: COCO category id.
        box: x1, y1, x2, y2 in original pixels, clipped to the image.
        area: area of the object in original pixels, as annotated.
        crowd: a region of uncounted objects, to be ignored.
        segmentation: polygons in original pixels (flat x, y, ...), or a run-length encoding as in the file, or None;
            the mask itself where the image was changed.
        keypoints: x, y, visibility of each keypoint, flat, in original pixels, or None where none are annotated.
    """

    annotation_id: int
    category_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: "list[array[float]] | Mapping[str, Any] | ObjectMask | None"
    keypoints: tuple[float, ...] | None


@dataclass(frozen=True)
class CocoImage:
    """One image and its annotations in file order; width and height in pixels, as stored (no EXIF turn)."""

    image_id: int
    file_name: str
    width: int
    height: int
    objects: tuple[CocoObject, ...]


@dataclass(frozen=True)
class CocoDataset:
    """A COCO annotation file.

    Attributes:
        categories: in the order of their ids; the position is the label of a model trained on them.
        images: in file order.
        keypoint_names: of the categories that have keypoints, in their order; empty where none has.
        keypoint_categories: names of these categories.
        dropped: one line for each annotation that was left out.
    """

    categories: tuple[Category, ...]
    images: tuple[CocoImage, ...]
    keypoint_names: tuple[str, ...] = ()
    keypoint_categories: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def label_of(self) -> dict[int, int]:
        """COCO category id -> label 0 .. K-1."""
        return {category.id: label for label, category in enumerate(self.categories)}


class _Fault(Exception):
    """What is wrong with one entry; the file name and the remedy are added where faults are collected."""


def load_coco(path: str, *, require_masks: bool, on_fault: Literal["raise", "drop"] = "raise") -> CocoDataset:
    """Read and check an annotation file.

    Args:
        path: local path or URI (s3://...).
        require_masks: every annotation that is no crowd must have a segmentation.
        on_fault: what to do with an annotation that is wrong in itself: raise, or drop it and list it in `dropped`.

    Raises:
        AnnotationError: with the file, the ids, the first faults and how to mend them.
        StorageError: the file is missing or unreadable.
    """
    document = _parse_json(path)
    image_entries, annotations, category_entries = (
        _section(document, name, path) for name in ("images", "annotations", "categories")
    )
    categories, keypoint_names = _read_categories(category_entries, path)
    images = _read_images(image_entries, path)
    _check_references(annotations, set(images), {category.id for category in categories}, path)
    objects: dict[int, list[CocoObject]] = {image_id: [] for image_id in images}
    faults = []
    for entry in annotations:
        image = images[entry["image_id"]]
        try:
            found = _read_object(entry, image, len(keypoint_names), require_masks)
        except _Fault as fault:
            faults.append(f"annotation {entry['id']} of image {entry['image_id']}: {fault}")
        else:
            objects[image.image_id].append(found)
    if on_fault == "raise":
        _raise_if_any(faults, path, "correct or remove these annotations, or load with on_fault='drop'")
    complete = tuple(
        CocoImage(image.image_id, image.file_name, image.width, image.height, tuple(objects[image.image_id]))
        for image in images.values()
    )
    with_keypoints = {entry["id"] for entry in category_entries if entry.get("keypoints")}
    return CocoDataset(
        categories=categories,
        images=complete,
        keypoint_names=keypoint_names,
        keypoint_categories=tuple(category.name for category in categories if category.id in with_keypoints),
        dropped=tuple(faults),
    )


def _parse_json(path: str) -> Entry:
    encoded = read_bytes(path)
    try:
        document = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: not JSON ({error}); expected a COCO instances or keypoints file") from None
    if not isinstance(document, dict):
        raise AnnotationError(
            f"{path}: the top level is a {type(document).__name__}, expected an object with the sections "
            "images, annotations and categories (a list is a COCO results file, which is no ground truth)"
        )
    return document


def _section(document: Entry, name: str, path: str) -> list[Entry]:
    section = document.get(name)
    if not isinstance(section, list) or not all(isinstance(entry, dict) for entry in section):
        got = "no such section" if name not in document else "something else"
        raise AnnotationError(f"{path}: section '{name}': got {got}, expected a list of objects; add it as COCO has it")
    return section


def _raise_if_any(faults: Sequence[str], path: str, mend: str) -> None:
    if faults:
        rest = len(faults) - _FAULTS_SHOWN
        more = f"; ... and {rest} more" if rest > 0 else ""
        raise AnnotationError(f"{path}: {'; '.join(faults[:_FAULTS_SHOWN])}{more}. To mend: {mend}.")


def _id_faults(entries: Iterable[Entry], kind: str) -> list[str]:
    seen: set[int] = set()
    faults = []
    for position, entry in enumerate(entries):
        identity = entry.get("id")
        if type(identity) is not int:
            faults.append(f"{kind} at position {position}: id {identity!r}, expected a whole number")
        elif identity in seen:
            faults.append(f"{kind} {identity}: duplicate id at position {position}")
        else:
            seen.add(identity)
    return faults


def _read_categories(entries: list[Entry], path: str) -> tuple[tuple[Category, ...], tuple[str, ...]]:
    faults = _id_faults(entries, "category")
    keypoint_lists: set[tuple[str, ...]] = set()
    for entry in entries:
        if not isinstance(entry.get("name"), str):
            faults.append(f"category {entry.get('id')}: name {entry.get('name')!r}, expected text")
        names = entry.get("keypoints") or []
        if not isinstance(names, list) or len(set(map(str, names))) != len(names):
            faults.append(f"category {entry.get('id')}: keypoints {names!r:.60}, expected a list of different names")
        elif names:
            keypoint_lists.add(tuple(str(name) for name in names))
    if not entries:
        faults.append("section 'categories' is empty, expected at least one category")
    if len(keypoint_lists) > 1:
        faults.append("categories have different lists of keypoints, expected one list in the file")
    _raise_if_any(faults, path, "correct these categories")
    ordered = sorted(entries, key=lambda entry: int(entry["id"]))
    categories = tuple(Category(id=entry["id"], name=entry["name"]) for entry in ordered)
    return categories, next(iter(keypoint_lists), ())


def _read_images(entries: list[Entry], path: str) -> dict[int, CocoImage]:
    faults = _id_faults(entries, "image")
    for entry in entries:
        name, width, height = entry.get("file_name"), entry.get("width"), entry.get("height")
        if not isinstance(name, str) or not name:
            faults.append(f"image {entry.get('id')}: file_name {name!r}, expected text")
        if not (type(width) is int and type(height) is int and width > 0 and height > 0):
            faults.append(
                f"image {entry.get('id')}: width {width!r}, height {height!r}, expected whole numbers above 0"
            )
    _raise_if_any(faults, path, "correct these images")
    return {
        entry["id"]: CocoImage(entry["id"], entry["file_name"], entry["width"], entry["height"], ())
        for entry in entries
    }


def _check_references(annotations: list[Entry], image_ids: set[int], category_ids: set[int], path: str) -> None:
    faults = _id_faults(annotations, "annotation")
    for entry in annotations:
        for name, known in (("image_id", image_ids), ("category_id", category_ids)):
            value = entry.get(name)
            if type(value) is not int or value not in known:
                section = "images" if name == "image_id" else "categories"
                faults.append(f"annotation {entry.get('id')}: {name} {value!r} is not in section '{section}'")
    _raise_if_any(faults, path, "give unique ids to the annotations, and add what they refer to or remove them")


def _read_object(entry: Entry, image: CocoImage, num_keypoints: int, require_masks: bool) -> CocoObject:
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise _Fault(f"iscrowd {crowd!r}, expected 0 or 1")
    box = _read_box(entry.get("bbox"), image)
    segmentation = _read_segmentation(entry.get("segmentation"), image)
    if segmentation is None and require_masks and not crowd:
        raise _Fault("no segmentation, expected polygons or run lengths")
    area = entry.get("area", (box[2] - box[0]) * (box[3] - box[1]))
    if not _are_finite([area]) or area < 0:
        raise _Fault(f"area {area!r}, expected a number of 0 or more")
    return CocoObject(
        annotation_id=entry["id"],
        category_id=entry["category_id"],
        box=box,
        area=float(area),
        crowd=bool(crowd),
        segmentation=segmentation,
        keypoints=_read_keypoints(entry.get("keypoints"), num_keypoints),
    )


def _are_finite(values: Iterable[object]) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)  # type: ignore[arg-type]


def _read_box(bbox: Any, image: CocoImage) -> tuple[float, float, float, float]:
    if not isinstance(bbox, list) or len(bbox) != 4 or not _are_finite(bbox):
        raise _Fault(f"bbox {bbox!r}, expected four finite numbers x, y, width, height")
    x, y, width, height = (float(value) for value in bbox)
    if width <= 0 or height <= 0:
        raise _Fault(f"bbox {bbox} has no extent, expected width and height above 0")
    box = (max(x, 0.0), max(y, 0.0), min(x + width, float(image.width)), min(y + height, float(image.height)))
    if box[2] <= box[0] or box[3] <= box[1]:
        raise _Fault(f"bbox {bbox} lies outside its image of {image.width} x {image.height} pixels (width x height)")
    return box


def _read_segmentation(segmentation: Any, image: CocoImage) -> "list[array[float]] | Mapping[str, Any] | None":
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, dict):
        try:
            run_lengths(segmentation, image.height, image.width)
        except (ValueError, TypeError, OverflowError) as error:
            raise _Fault(f"segmentation: {error}") from None
        return segmentation
    if not isinstance(segmentation, list):
        raise _Fault(f"segmentation of type {type(segmentation).__name__}, expected polygons or run lengths")
    for polygon in segmentation:
        if not isinstance(polygon, list) or not _are_finite(polygon):
            raise _Fault("segmentation: a polygon that is no list of finite numbers x, y, x, y, ...")
        if len(polygon) < 6 or len(polygon) % 2:
            raise _Fault(f"segmentation: a polygon of {len(polygon)} numbers, expected x, y of at least 3 points")
    return [array("d", polygon) for polygon in segmentation]  # a quarter of the memory of Python's floats


def _read_keypoints(keypoints: Any, num_keypoints: int) -> tuple[float, ...] | None:
    if keypoints is None or keypoints == []:
        return None
    if not isinstance(keypoints, list) or not _are_finite(keypoints):
        raise _Fault("keypoints: expected finite numbers x, y, visibility for each keypoint")
    if len(keypoints) % 3:
        raise _Fault(f"keypoints: {len(keypoints)} numbers, expected a multiple of 3 (x, y, visibility)")
    if len(keypoints) != 3 * num_keypoints:
        raise _Fault(f"keypoints: {len(keypoints)} numbers, expected 3 for each of the category's {num_keypoints}")
    for place, visibility in enumerate(keypoints[2::3]):
        if visibility not in (0, 1, 2):
            raise _Fault(f"keypoints: visibility {visibility} of keypoint {place}, expected 0, 1 or 2")
    return tuple(float(value) for value in keypoints)
