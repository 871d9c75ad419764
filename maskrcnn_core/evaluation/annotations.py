"""What COCO's scoring needs of an annotation file, checked entry by entry with the entry's name in the error."""

from collections.abc import Collection, Iterable
from typing import Any

from maskrcnn_core.errors import AnnotationError

CocoDict = dict[str, Any]


def check_annotations(annotations: CocoDict) -> dict[int, CocoDict]:
    """Image entries by id, after checking every field that the engines read.

    Raises:
        AnnotationError: naming the entry and the field.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(annotations.get(key), list):
            raise AnnotationError(f"the annotations have no list {key!r}; expected COCO instances JSON")
        if key != "annotations":
            for entry in annotations[key]:
                check_identified(key, entry)
    images = {image["id"]: image for image in annotations["images"]}
    if len(images) != len(annotations["images"]):
        raise AnnotationError("the annotation file has two images with one id; expected unique ids")
    check_entries(annotations["annotations"], images, {category["id"] for category in annotations["categories"]})
    return images


def check_identified(key: str, entry: object) -> None:
    """An image or category has a whole number as id.

    Raises:
        AnnotationError: it has not.
    """
    if not isinstance(entry, dict) or type(entry.get("id")) is not int:
        raise AnnotationError(f"{key!r} holds an entry without a whole number as id; expected COCO instances JSON")


def check_entries(entries: Iterable[object], image_ids: Collection[int], category_ids: Collection[int]) -> None:
    """Annotations have the fields that scoring reads and belong to known images and categories.

    Raises:
        AnnotationError: naming the first that does not.
    """
    for annotation in entries:
        if not isinstance(annotation, dict):
            raise AnnotationError(f"an annotation is {annotation!r}; expected COCO instances JSON")
        for key in ("id", "image_id", "category_id", "bbox", "area"):
            if key not in annotation:
                raise AnnotationError(
                    f"annotation {annotation.get('id', annotation)}: {key!r} is missing; COCO's scoring needs it"
                )
        for key, known, what in (
            ("image_id", image_ids, "images"),
            ("category_id", category_ids, "categories"),
        ):
            if annotation[key] not in known:
                raise AnnotationError(
                    f"annotation {annotation['id']}: {key} {annotation[key]} is not among the {what}; add or remove it"
                )


def check_polygons(entries: Iterable[CocoDict]) -> None:
    """Polygons have three points or more: of four numbers pycocotools makes a box, and fails; hotcoco an empty mask.

    Raises:
        AnnotationError: naming the first that has not.
    """
    for annotation in entries:
        polygons = annotation.get("segmentation") if isinstance(annotation, dict) else None
        if isinstance(polygons, list) and not all(isinstance(p, list) and len(p) >= 6 for p in polygons):
            raise AnnotationError(
                f"annotation {annotation.get('id')}: a polygon of fewer than 6 numbers, expected x, y of at least 3 "
                "points; correct the annotation or remove it"
            )
