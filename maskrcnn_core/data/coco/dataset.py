"""COCO instances and keypoints annotations: read, checked, in plain frozen structures (cocodataset.org/#format-data).

Entries are read by `sections` and `annotations`, which say what becomes of which fault; scoring reads the
same entries by the same rules (`evaluation.annotations`). A fault that breaks the file (no JSON, a missing section, a
duplicate or unknown id) always raises. A fault of a single annotation (a box without extent, a polygon with two points)
raises too, or costs the smallest thing that is wrong and is counted in `CocoDataset.faults`, as the caller chooses.
Real COCO train2017 holds a few such annotations.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from maskrcnn_core.config.model import Category
from maskrcnn_core.data.coco.annotations import Asked, read_annotations
from maskrcnn_core.data.coco.category_names import distinct_names
from maskrcnn_core.data.coco.entry_faults import Faults
from maskrcnn_core.data.coco.json_text import parse_json, without_garbage_collection
from maskrcnn_core.data.coco.sections import CocoDict, CocoSections, SizeOf
from maskrcnn_core.data.files import read_bytes
from maskrcnn_core.data.segmentation import Segmentation, rasterise
from maskrcnn_core.errors import AnnotationError

__all__ = ["CocoDataset", "CocoImage", "CocoObject", "load_categories", "load_coco", "rasterise"]

_SECTIONS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoObject:
    """One annotation.

    Attributes:
        annotation_id: COCO annotation id.
        category_id: COCO category id.
        box: x1, y1, x2, y2 in original pixels, clipped to the image.
        area: area of the object in original pixels, as annotated.
        crowd: a region of uncounted objects, to be ignored; where masks are learnt, also an object without a mask.
        segmentation: polygons in original pixels (flat x, y, ...), or a run-length encoding as in the file, or None;
            the mask itself where the image was changed.
        keypoints: x, y, visibility of each keypoint, flat, in original pixels, or None where none are annotated.
        bbox: x, y, width, height as annotated, for scoring; None = those of `box`.
        num_keypoints: as annotated, for scoring.
    """

    annotation_id: int
    category_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: "Segmentation | None"
    keypoints: tuple[float, ...] | None
    bbox: tuple[float, float, float, float] | None = None
    num_keypoints: int = 0


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
        keypoint_names: of the categories that have keypoints, in their order; empty where none has, or nobody asked.
        keypoint_categories: names of these categories.
        faults: what was left out or mended.
        named_by_url: some file names are the last two parts of a `coco_url`, a split's folder and a file.
    """

    categories: tuple[Category, ...]
    images: tuple[CocoImage, ...]
    keypoint_names: tuple[str, ...] = ()
    keypoint_categories: tuple[str, ...] = ()
    faults: Faults = field(default_factory=Faults)
    named_by_url: bool = False

    @property
    def label_of(self) -> dict[int, int]:
        """COCO category id -> label 0 .. K-1."""
        return {category.id: label for label, category in enumerate(self.categories)}

    def document(self) -> CocoDict:
        """The data set as scoring reads it: a COCO document of clean entries."""
        names = list(self.keypoint_names)
        return {
            "images": [
                {"id": image.image_id, "file_name": image.file_name, "width": image.width, "height": image.height}
                for image in self.images
            ],
            "annotations": [entry for image in self.images for entry in image_entries(image)],
            "categories": [
                {"id": one.id, "name": one.name}
                | ({"keypoints": names} if one.name in self.keypoint_categories else {})
                for one in self.categories
            ],
        }


def image_entries(image: CocoImage) -> list[CocoDict]:
    """The annotations of an image as clean COCO entries."""
    return [_entry(image.image_id, item) for item in image.objects]


def _entry(image_id: int, item: CocoObject) -> CocoDict:
    x1, y1, x2, y2 = item.box
    entry: CocoDict = {
        "id": item.annotation_id,
        "image_id": image_id,
        "category_id": item.category_id,
        "bbox": list(item.bbox or (x1, y1, x2 - x1, y2 - y1)),
        "area": item.area,
        "iscrowd": int(item.crowd),
    }
    if item.segmentation is not None:
        entry["segmentation"] = item.segmentation
    if item.keypoints is not None:
        entry |= {"keypoints": list(item.keypoints), "num_keypoints": item.num_keypoints}
    return entry


def load_coco(
    path: str,
    *,
    require_masks: bool,
    masks: bool = True,
    keypoints: bool = True,
    on_fault: Literal["raise", "drop"] = "raise",
    size_of: SizeOf | None = None,
) -> CocoDataset:
    """Read and check an annotation file.

    Args:
        path: local path or URI (s3://...).
        require_masks: masks are learnt: an object without a usable one becomes a region to ignore.
        masks: faults of masks matter; where they do not, a mask that cannot be used is none, without a word.
        keypoints: keypoints matter; where they do not, they are not looked at.
        on_fault: what to do with an entry that is wrong in itself: raise, or leave out the smallest thing that is wrong
            and count it in `faults`.
        size_of: asked for the size of an image that the file does not say; without it such an image is left out.

    Raises:
        AnnotationError: with the file, the ids, the first faults and how to mend them.
        StorageError: the file is missing or unreadable.
    """
    with without_garbage_collection():
        try:
            dataset = _dataset(_document(path), require_masks, Asked(masks or require_masks), keypoints, size_of)
        except AnnotationError as error:
            raise AnnotationError(f"{path}: {error}") from None
    if on_fault == "raise" and dataset.faults:
        raise AnnotationError(f"{path}: {'; '.join(dataset.faults.lines())}. To mend: correct or remove these entries.")
    return dataset


def load_categories(path: str) -> tuple[Category, ...]:
    """The categories of an annotation file, by id, whatever else it holds.

    Raises:
        AnnotationError: they are wrong.
        StorageError: the file is missing or unreadable.
    """
    sections = CocoSections(names=False, sizes=False, keypoints=False)
    try:
        for entry in _section(_document(path), "categories"):
            sections.add_category(entry)
        sections.finish()
    except AnnotationError as error:
        raise AnnotationError(f"{path}: {error}") from None
    return _categories(sections)


def _dataset(
    document: CocoDict, require_masks: bool, asked: Asked, keypoints: bool, size_of: SizeOf | None
) -> CocoDataset:
    images, annotations, categories = (_section(document, name) for name in _SECTIONS)
    sections = CocoSections(names=True, sizes=size_of or True, keypoints=keypoints)
    for entry in images:
        sections.add_image(entry)
    for entry in categories:
        sections.add_category(entry)
    for entry in annotations:
        sections.add_annotation(entry)
    sections.finish()
    names, with_keypoints = _keypoint_names(sections.categories) if keypoints else ((), {})
    asked = replace(asked, keypoints=with_keypoints)
    objects: dict[int, list[CocoObject]] = {image_id: [] for image_id in sections.images}
    for clean in read_annotations(annotations, sections.images, asked, sections.faults, sections.left_out):
        image = sections.images[clean["image_id"]]
        objects[image["id"]].append(_object(clean, image, require_masks))
    return CocoDataset(
        categories=_categories(sections),
        images=tuple(
            CocoImage(image_id, image["file_name"], image["width"], image["height"], tuple(objects[image_id]))
            for image_id, image in sections.images.items()
        ),
        keypoint_names=names,
        keypoint_categories=tuple(one.name for one in _categories(sections) if one.id in with_keypoints),
        faults=sections.faults.faults(),
        named_by_url=any("named_by_url" in image for image in sections.images.values()),
    )


def _document(path: str) -> CocoDict:
    document = parse_json(read_bytes(path))
    if not isinstance(document, dict):
        raise AnnotationError(
            f"the top level is a {type(document).__name__}, expected an object with the sections "
            "images, annotations and categories (a list is a COCO results file, which is no ground truth)"
        )
    return document


def _section(document: CocoDict, name: str) -> list[Any]:
    section = document.get(name)
    if not isinstance(section, list):
        got = "no such section" if name not in document else "something else"
        raise AnnotationError(f"section '{name}': got {got}, expected a list of objects; add it as COCO has it")
    return section


def _categories(sections: CocoSections) -> tuple[Category, ...]:
    ordered = sorted(sections.categories, key=lambda category: int(category["id"]))
    return tuple(Category(category["id"], category.get("name", str(category["id"]))) for category in ordered)


def _keypoint_names(categories: Iterable[CocoDict]) -> tuple[tuple[str, ...], dict[int, int]]:
    """The one list of keypoints of a file, and how many by id of each category that has it."""
    lists = {category["id"]: tuple(category["keypoints"]) for category in categories if "keypoints" in category}
    if len(set(lists.values())) > 1:
        raise AnnotationError("categories have different lists of keypoints, expected one list in the file")
    return next(iter(lists.values()), ()), {category_id: len(names) for category_id, names in lists.items()}


def _object(clean: CocoDict, image: CocoDict, require_masks: bool) -> CocoObject:
    bbox = tuple(float(value) for value in clean["bbox"])
    x, y, width, height = bbox
    box = (max(x, 0.0), max(y, 0.0), min(x + width, float(image["width"])), min(y + height, float(image["height"])))
    mask, points = clean.get("segmentation"), clean.get("keypoints")
    return CocoObject(
        annotation_id=clean["id"],
        category_id=clean["category_id"],
        box=box,
        area=float(clean["area"]),
        crowd=bool(clean["iscrowd"]) or (require_masks and mask is None),
        segmentation=mask,
        keypoints=None if points is None else tuple(float(value) for value in points),
        bbox=(x, y, width, height),
        num_keypoints=clean.get("num_keypoints", 0),
    )


def with_categories(dataset: CocoDataset, categories: Sequence[Category]) -> tuple[CocoDataset, str]:
    """A data set whose categories meet those of another one by name, with the other's ids.

    Args:
        dataset: its categories may have other ids, and may be fewer.
        categories: of the other one.

    Returns:
        The data set with `categories` and their ids; and what was done, empty where all were the same already.

    Raises:
        AnnotationError: a category has a name that the other one lacks.
    """
    if dataset.categories == tuple(categories):
        return dataset, ""
    # Where a name stands twice, its categories are told apart by their ids.
    shown, theirs = (distinct_names((one.id, one.name) for one in group) for group in (dataset.categories, categories))
    known, named = {name: number for number, name in theirs.items()}, {one.id: one.name for one in categories}
    strange = [one for one in dataset.categories if shown[one.id] not in known]
    if strange:
        told = "; ".join(
            f"{one.name!r} (id {one.id}" + (f", which is {named[one.id]!r} there)" if one.id in named else ")")
            for one in strange[:5]
        )
        ours = ", ".join(repr(one.name) for one in tuple(categories)[:10])
        raise AnnotationError(
            f"categories meet by name, and {len(strange)} have a name of their own: {told}; expected some of {ours}"
            + (", ..." if len(categories) > 10 else "")
        )
    new_ids = {one.id: known[shown[one.id]] for one in dataset.categories}
    moved = [one for one in dataset.categories if new_ids[one.id] != one.id]
    missing = [name for number, name in theirs.items() if number not in new_ids.values()]
    images = dataset.images
    if moved:
        images = tuple(
            replace(
                image,
                objects=tuple(replace(item, category_id=new_ids[item.category_id]) for item in image.objects),
            )
            for image in images
        )
    said = [f"{one.name!r} has the id {one.id} here and {new_ids[one.id]} there" for one in moved[:5]]
    said += [f"and {len(moved) - 5} more"] if len(moved) > 5 else []
    said += [f"{len(missing)} are not in this file ({', '.join(map(repr, missing[:5]))})"] if missing else []
    return replace(dataset, categories=tuple(categories), images=images), f"categories meet by name: {', '.join(said)}"
