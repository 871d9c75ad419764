"""Label records as COCO results: which rows count, and the dictionaries that COCO's tools read.

The *results format* of COCO (cocodataset.org, "results format") is a list with one dictionary per detection.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.annotations import CocoDict
from maskrcnn_core.evaluation.match_counts import BoxFacts, FoundFacts, box_facts
from maskrcnn_core.evaluation.scoring_states import IouType

_IDS_KEPT = 1000


@dataclass(frozen=True)
class Coverage:
    """How label rows and the images of an annotation file fit together.

    Attributes:
        images: images in the annotation file; all of them are evaluated, or only the labelled ones.
        labelled: of these, images with a label row of status `ok`.
        failed: of these, images whose label row says that the image failed; they count as without detections.
        unlabelled: of these, images without a label row; they count as without detections.
        unknown: label rows whose image id the annotation file does not have; they are left out.
        left_out: images that are not evaluated, because only labelled ones are asked for.
        without_labels: ids of the failed and unlabelled images, the first 1000 by id.
    """

    images: int
    labelled: int
    failed: int
    unlabelled: int
    unknown: int
    left_out: int = 0
    without_labels: tuple[int, ...] = ()


def match_labels(
    labels: pa.Table, images: Mapping[int, CocoDict], unknown: int = 0, first_id: int | None = None
) -> tuple[pa.Table, Coverage]:
    """The label rows that belong to annotated images, and how many do not.

    Args:
        labels: label records (`inference.records`), any number of rows.
        images: image entries of the annotation file by id.
        unknown: label rows of other images that `labels` does without.
        first_id: of the first label row, where `labels` has none.

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
        first = ids[0] if ids else first_id
        example = (
            ""
            if first is None
            else f"; the first row has {first}, the first annotated image {next(iter(images), None)}"
        )
        raise AnnotationError(
            f"none of the {len(ids) + unknown} label rows has an image id of the annotation file ({len(images)} images)"
            f"{example}. Label with --images ANNOTATIONS.json so that rows carry its ids"
        )
    rows = labels.filter(pa.array(known))
    _require_same_sizes(rows, images)
    labelled = set(rows.filter(pc.equal(rows.column("status"), "ok")).column("image_id").to_pylist())
    return rows, Coverage(
        images=len(images),
        labelled=len(labelled),
        failed=len(rows) - len(labelled),
        unlabelled=len(images) - len(rows),
        unknown=len(labels) - len(rows) + unknown,
        without_labels=tuple(sorted(images.keys() - labelled)[:_IDS_KEPT]),
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
    shapes = _shapes(detections, iou_type)
    if None in shapes and iou_type != "keypoints":
        raise AnnotationError(
            f"image {image_ids[shapes.index(None)]}: a detection has no {shape}, so {iou_type} cannot be scored; "
            "label with a model that has a mask head"
        )
    categories, scores = (detections.field(name).to_numpy(zero_copy_only=False) for name in ("category_id", "score"))
    columns = (image_ids, categories.tolist(), scores.astype(np.float64).tolist(), shapes)
    return [
        {"image_id": image_id, "category_id": category_id, "score": score, shape: value}
        for image_id, category_id, score, value in zip(*columns, strict=True)
        if value is not None
    ]


def _shapes(detections: pa.StructArray, iou_type: IouType) -> list[Any]:
    """Box, mask or keypoints of each detection, None where it has none; Arrow's own conversion takes thrice as long."""
    if iou_type == "keypoints":
        keypoints: list[Any] = detections.field("keypoints").to_pylist()
        return keypoints
    if iou_type == "bbox":
        return _boxes(detections).tolist()  # type: ignore[no-any-return]
    masks = detections.field("segmentation")
    present = masks.is_valid().to_numpy(zero_copy_only=False)
    sizes = pc.list_flatten(pc.struct_field(masks, "size").filter(masks.is_valid()))
    counts = pc.struct_field(masks, "counts").to_pylist()
    pairs = iter(sizes.to_numpy(zero_copy_only=False).reshape(-1, 2).tolist())
    return [
        {"size": next(pairs), "counts": text} if there else None
        for there, text in zip(present.tolist(), counts, strict=True)
    ]


def _boxes(detections: pa.StructArray) -> npt.NDArray[np.float64]:
    """[D, 4]."""
    flat = pc.list_flatten(detections.field("bbox")).to_numpy(zero_copy_only=False).astype(np.float64)
    if len(flat) != 4 * len(detections):
        raise AnnotationError("a detection's bbox has not 4 numbers, expected x, y, width, height")
    boxes: npt.NDArray[np.float64] = flat.reshape(-1, 4)
    return boxes


def facts_of_rows(labels: pa.Table, category_ids: Collection[int], with_keypoints: Collection[int]) -> FoundFacts:
    """Count the detections of label records.

    Args:
        labels: label records, any number of rows.
        category_ids: those of the annotation file.
        with_keypoints: of these, the ones that list keypoints.
    """
    image_ids, detections = _flatten(labels)
    detected_ids = detections.field("category_id").to_numpy(zero_copy_only=False)
    strange = np.flatnonzero(~np.isin(detected_ids, list(category_ids)))
    unknown = detections.field("category").take(pa.array(strange)).to_pylist()
    lengths = pc.fill_null(pc.list_value_length(detections.field("keypoints")), 0).to_numpy(zero_copy_only=False) // 3
    numbers = Counter(lengths[np.isin(detected_ids, list(with_keypoints))].tolist())
    return FoundFacts(
        detections=len(detected_ids),
        unknown=Counter(unknown),
        first=min(
            ((image_ids[i], int(detected_ids[i]), name) for i, name in zip(strange, unknown, strict=True)), default=None
        ),
        without_mask=int(detections.field("segmentation").null_count),
        keypoint_numbers=numbers,
        any_keypoints=bool((lengths > 0).any()),
        categories=frozenset(np.unique(detected_ids).tolist()),
        boxes=_box_facts(labels, detections),
    )


def _box_facts(labels: pa.Table, detections: pa.StructArray) -> BoxFacts:
    lists = _one_array(labels.column("detections"))
    owner = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    heights, widths = (
        pc.fill_null(_one_array(labels.column(name)), 0).to_numpy(zero_copy_only=False)[owner].astype(np.float64)
        for name in ("height", "width")
    )
    return box_facts(_boxes(detections), heights, widths)


def _flatten(labels: pa.Table) -> tuple[list[int], pa.StructArray]:
    """All detections in one array, and the image id of each."""
    column = _one_array(labels.column("detections"))
    image_ids = _one_array(labels.column("image_id"))
    return pc.take(image_ids, pc.list_parent_indices(column)).to_pylist(), pc.list_flatten(column)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # older Arrow keeps a single chunk wrapped
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    return array
