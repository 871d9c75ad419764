"""Label records as COCO results: which rows count, and the dictionaries that COCO's tools read.

The *results format* of COCO (cocodataset.org, "results format") is a list with one dictionary per detection.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from maskrcnn_core.errors import AnnotationError

IouType = Literal["bbox", "segm", "keypoints"]
CocoDict = dict[str, Any]


@dataclass(frozen=True)
class Coverage:
    """How label rows and the images of an annotation file fit together.

    Attributes:
        images: images in the annotation file; all of them are evaluated.
        labelled: of these, images with a label row of status `ok`.
        failed: of these, images whose label row says that the image failed; they count as without detections.
        unlabelled: of these, images without a label row; they count as without detections.
        unknown: label rows whose image id the annotation file does not have; they are left out.
    """

    images: int
    labelled: int
    failed: int
    unlabelled: int
    unknown: int


def match_labels(labels: pa.Table, images: Mapping[int, CocoDict]) -> tuple[pa.Table, Coverage]:
    """The label rows that belong to annotated images, and how many do not.

    Args:
        labels: label records (`inference.records`), any number of rows.
        images: image entries of the annotation file by id.

    Returns:
        The rows with an image id of the annotation file, in order, and the counts.

    Raises:
        AnnotationError: two rows have one image id, no row belongs to an annotated image, or a row was labelled at
            another size than the annotation file states (its detections would lie in another frame).
    """
    ids = labels.column("image_id").to_pylist()
    _require_unique(ids)
    known = [image_id in images for image_id in ids]
    if not any(known):
        example = f"; the first row has {ids[0]}, the first annotated image {next(iter(images), None)}" if ids else ""
        raise AnnotationError(
            f"none of the {len(ids)} label rows has an image id of the annotation file ({len(images)} images)"
            f"{example}. Label with --images ANNOTATIONS.json so that rows carry its ids"
        )
    rows = labels.filter(pa.array(known))
    _require_same_sizes(rows, images)
    labelled = rows.column("status").to_pylist().count("ok")
    return rows, Coverage(
        images=len(images),
        labelled=labelled,
        failed=len(rows) - labelled,
        unlabelled=len(images) - len(rows),
        unknown=len(labels) - len(rows),
    )


def _require_unique(ids: list[int]) -> None:
    seen: set[int] = set()
    for image_id in ids:
        if image_id in seen:
            raise AnnotationError(
                f"image_id {image_id} has more than one label row; expected one. Give the labels of one run only"
            )
        seen.add(image_id)


def _require_same_sizes(rows: pa.Table, images: Mapping[int, CocoDict]) -> None:
    columns = [rows.column(name).to_pylist() for name in ("image_id", "width", "height")]
    for image_id, width, height in zip(*columns, strict=True):
        stated = (images[image_id].get("width"), images[image_id].get("height"))
        if width is not None and None not in stated and (width, height) != stated:
            raise AnnotationError(
                f"image {image_id}: labelled at {width} x {height} pixels, the annotation file states "
                f"{stated[0]} x {stated[1]}. Label the annotated files themselves, with --label.exif_orientation ignore"
            )


def coco_results(labels: pa.Table, iou_type: IouType) -> list[CocoDict]:
    """Detections of label records in COCO's results format, in the order of the rows.

    Box results carry only the box and mask results only the mask: a mask result that has a box as well would be filed
    under small, medium or large by its box's area (pycocotools' `loadRes`), which moves those numbers.

    Args:
        labels: label records, any number of rows.
        iou_type: `bbox`, `segm` or `keypoints`; for the last, detections without keypoints are left out.

    Returns:
        Dictionaries with `image_id`, `category_id`, `score` and `bbox` (x, y, width, height), `segmentation`
        (compressed RLE) or `keypoints` (x, y, v for each).

    Raises:
        AnnotationError: `segm` is asked for and a detection has no mask.
    """
    shape = "segmentation" if iou_type == "segm" else iou_type
    image_ids, detections = _flatten(labels)
    shapes = detections.field(shape).to_pylist()
    if None in shapes and iou_type != "keypoints":
        raise AnnotationError(
            f"image {image_ids[shapes.index(None)]}: a detection has no {shape}, so {iou_type} cannot be scored; "
            "label with a model that has a mask head"
        )
    columns = (image_ids, detections.field("category_id").to_pylist(), detections.field("score").to_pylist(), shapes)
    return [
        {"image_id": image_id, "category_id": category_id, "score": score, shape: value}
        for image_id, category_id, score, value in zip(*columns, strict=True)
        if value is not None
    ]


def unknown_categories(labels: pa.Table, category_ids: Collection[int]) -> dict[str, int]:
    """Detections of categories that the annotation file does not have; pycocotools leaves them out, and so do we.

    A model may know more classes than the annotations. If it shares none with them, the two do not belong together.

    Returns:
        Number of detections by category name, empty if all are known.

    Raises:
        AnnotationError: there are detections, and not one is of a known category.
    """
    image_ids, detections = _flatten(labels)
    names = detections.field("category").to_pylist()
    found = detections.field("category_id").to_pylist()
    unknown = Counter(name for name, category_id in zip(names, found, strict=True) if category_id not in category_ids)
    if found and unknown.total() == len(found):
        some = ", ".join(map(str, sorted(category_ids)[:10])) + (", ..." if len(category_ids) > 10 else "")
        raise AnnotationError(
            f"image {image_ids[0]}: a detection has category_id {found[0]} ({names[0]!r}), and no detection has one of "
            f"the annotation file's ({some}). Score labels against annotations with the model's categories"
        )
    return dict(unknown)


def count_without_mask(labels: pa.Table) -> int:
    """How many detections carry no mask."""
    return int(_flatten(labels)[1].field("segmentation").null_count)


def keypoint_counts(labels: pa.Table, category_ids: Collection[int] | None) -> dict[int, int]:
    """How many detections of the categories (None = of any) have how many keypoints: number of keypoints -> detections;
    0 where a detection has none."""
    detections = _flatten(labels)[1]
    if category_ids is not None:
        wanted = pa.array(sorted(category_ids), type=pa.int32())
        detections = detections.filter(pc.is_in(detections.field("category_id"), value_set=wanted))
    lengths = pc.fill_null(pc.list_value_length(detections.field("keypoints")), 0)
    return {entry["values"] // 3: entry["counts"] for entry in pc.value_counts(lengths).to_pylist()}


def count_detections(labels: pa.Table) -> int:
    """How many detections the label records hold."""
    return len(_flatten(labels)[0])


def _flatten(labels: pa.Table) -> tuple[list[int], pa.StructArray]:
    """All detections in one array, and the image id of each."""
    column = labels.column("detections").combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # older Arrow keeps a single chunk wrapped
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    image_ids = labels.column("image_id").combine_chunks()
    return pc.take(image_ids, pc.list_parent_indices(column)).to_pylist(), pc.list_flatten(column)
