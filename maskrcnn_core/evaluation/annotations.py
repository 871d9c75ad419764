"""A COCO annotation file as scoring reads it: clean entries (`data.coco_annotations`), and masks for those without."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maskrcnn_core.data.coco.annotations import Asked, read_annotations
from maskrcnn_core.data.coco.entry_faults import Faults
from maskrcnn_core.data.coco.sections import CocoDict, CocoSections
from maskrcnn_core.errors import AnnotationError

__all__ = ["Annotations", "CocoDict", "asked_of", "mask_objects", "notes_of_ids", "read_document"]


@dataclass(frozen=True)
class Annotations:
    """Clean entries of an annotation file.

    Attributes:
        images: by id, in file order.
        categories: in file order.
        entries: annotations in file order.
        faults: what was left out or mended.
        has_id_zero: an annotation has the id 0.
    """

    images: Mapping[int, CocoDict]
    categories: tuple[CocoDict, ...]
    entries: Sequence[CocoDict]
    faults: Faults = field(default_factory=Faults)
    has_id_zero: bool = False

    def by_image(self) -> dict[int, list[CocoDict]]:
        """The annotations of every image, also of those without any."""
        grouped: dict[int, list[CocoDict]] = {image_id: [] for image_id in self.images}
        for entry in self.entries:
            grouped[entry["image_id"]].append(entry)
        return grouped


def read_document(document: Any) -> Annotations:
    """The clean entries of a COCO document; clean ones come out as they are.

    Raises:
        AnnotationError: it is no COCO instances document, or its ids are wrong.
    """
    if not isinstance(document, Mapping):
        raise AnnotationError(f"holds a {type(document).__name__}; expected a COCO instances object")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list | tuple):
            raise AnnotationError(f"the annotations have no list {key!r}; expected COCO instances JSON")
    sections = CocoSections(names="kept", sizes=False, keypoints=False)
    for image in document["images"]:
        sections.add_image(image)
    for category in document["categories"]:
        sections.add_category(category)
    for entry in document["annotations"]:
        sections.add_annotation(entry)
    sections.finish()
    asked = asked_of(sections.categories)
    entries = list(read_annotations(document["annotations"], sections.images, asked, sections.faults))
    return Annotations(
        sections.images, tuple(sections.categories), entries, sections.faults.faults(), sections.has_id_zero
    )


def asked_of(categories: Iterable[CocoDict]) -> Asked:
    """What scoring wants to know of annotations: everything, of each category with keypoints its own number."""
    return Asked(keypoints={one["id"]: len(one["keypoints"]) for one in categories if "keypoints" in one})


def notes_of_ids(has_id_zero: bool) -> tuple[str, ...]:
    """What to say of annotation ids whose scores are not those of pycocotools itself."""
    if not has_id_zero:
        return ()
    return (
        "an annotation has the id 0: pycocotools takes a match with it for none; here it counts as any other, as with "
        "ids from 1",
    )


def mask_objects(annotations: Sequence[CocoDict], images: Collection[CocoDict]) -> Sequence[CocoDict]:
    """The annotations as masks are scored: one without a mask is a region to ignore, of its box's shape.

    A detection there may be right, and nobody can tell: it is neither right nor wrong, as on a crowd region.
    """
    if all("segmentation" in one for one in annotations):
        return annotations
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    return [one if "segmentation" in one else _region(one, *sizes[one["image_id"]]) for one in annotations]


def _region(annotation: CocoDict, width: int, height: int) -> CocoDict:
    x, y, w, h = annotation["bbox"]
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    outline = [float(value) for value in (x1, y1, x2, y1, x2, y2, x1, y2)]
    return {**annotation, "segmentation": [outline], "iscrowd": 1, "without_mask": True}
