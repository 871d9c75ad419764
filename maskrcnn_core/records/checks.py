"""What a label row must keep to (`labels`, `proposals`), checked for a batch of rows at once.

One file's rows are judged here, by themselves; that a run's files together hold every image once is
`pipelines.verification.run`'s part. What no reader can do without is in `readable_rows`; here it is all rules together.

Letters: R rows (images), D objects of all of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools import mask as coco_mask

from maskrcnn_core.config.model import Category
from maskrcnn_core.records.readable_rows import (
    STATUSES,
    Objects,
    Rows,
    box_corners,
    check_images,
    check_masks,
    check_objects,
    flags,
    numbers,
    objects_column,
    objects_of,
)
from maskrcnn_core.records.row_findings import NOTHING_FOUND, Findings, Offence, findings_at, one

__all__ = ["NOTHING_FOUND", "STATUSES", "Findings", "Offence", "RowCounts", "check_rows", "count_rows", "one"]

_Int64 = npt.NDArray[np.int64]

# float32 places of a 30,000 pixel image are 0.002 pixels apart, and x + width rounds twice.
_PIXEL_TOLERANCE = 0.01

# A mask is drawn inside its box: it may reach into the pixels that the box's edges cut, and one further where a paste
# rule rounds the box outwards.
_MASK_TOLERANCE = 2.0


@dataclass(frozen=True)
class RowCounts:
    """What a batch of rows holds.

    Attributes:
        statuses: rows by status.
        objects: detections, or proposals.
        masks: those with run lengths.
    """

    statuses: Mapping[str, int] = field(default_factory=dict)
    objects: int = 0
    masks: int = 0

    def __add__(self, other: "RowCounts") -> "RowCounts":
        statuses = dict(sorted((Counter(self.statuses) + Counter(other.statuses)).items()))
        return RowCounts(statuses, self.objects + other.objects, self.masks + other.masks)


def count_rows(rows: pa.RecordBatch) -> RowCounts:
    """Rows by status, objects and masks of a batch of label or proposal records."""
    counted = rows.column("status").value_counts().to_pylist()
    statuses = {str(entry["values"]): entry["counts"] for entry in counted}
    structs = pc.list_flatten(rows.column(objects_column(rows.schema)))
    masks = 0
    if structs.type.get_field_index("segmentation") >= 0:
        masks = len(structs) - pc.struct_field(structs, "segmentation").null_count
    return RowCounts(statuses, len(structs), masks)


def check_rows(rows: pa.RecordBatch, categories: Sequence[Category], model: str | None) -> Findings:
    """Every rule that a row has to keep by itself.

    Args:
        rows: label or proposal records with all their columns, in the records' types.
        categories: the file's category table; not asked of proposals.
        model: fingerprint that every row must carry; None = any, but one.
    """
    findings = check_images(rows) + _check_errors(rows) + _check_model(rows, model)
    objects = objects_of(rows)
    if objects is None or len(objects) == 0:
        return findings
    findings += check_objects(objects, categories) + _check_positions(objects) + _check_order(objects)
    if objects_column(rows.schema) == "detections" and not categories:
        findings += findings_at(
            np.ones(len(objects), np.bool_), objects, "category", lambda _: "no table", "a category table"
        )
    masks, sound = check_masks(objects)
    return findings + masks + _check_mask_positions(objects, sound)


def _check_errors(rows: pa.RecordBatch) -> Findings:
    """A row has an error if its image failed."""
    statuses, errors = rows.column("status"), rows.column("error")
    ok = flags(pc.equal(statuses, "ok"))
    has_error = flags(pc.greater(pc.binary_length(errors), 0))

    def given(row: int) -> str:
        return f"ok with error {errors[row].as_py()!r:.80}"

    def missing(row: int) -> str:
        return f"{statuses[row].as_py()!r:.60} without error"

    among = Rows(rows)
    return findings_at(ok & has_error, among, "error", given, "none") + findings_at(
        ~ok & ~has_error, among, "error", missing, "the reason"
    )


def _check_model(rows: pa.RecordBatch, model: str | None) -> Findings:
    models = rows.column("model")
    other = flags(pc.is_null(models)) if model is None else ~flags(pc.equal(models, model))
    expected = "a fingerprint" if model is None else f"the run's fingerprint {model}"
    return findings_at(other, Rows(rows), "model", lambda i: str(models[i].as_py())[:60], expected)


def _check_positions(objects: Objects) -> Findings:
    """Boxes have no negative extent, and lie inside their image."""
    boxes = pc.struct_field(objects.structs, "bbox")
    corners = box_corners(objects)
    finite = np.isfinite(corners).all(axis=1)

    def shown(index: int) -> str:
        return f"box {boxes[index].as_py()}"

    x, y, w, h = np.nan_to_num(corners).T
    inside = (x >= -_PIXEL_TOLERANCE) & (y >= -_PIXEL_TOLERANCE)
    inside &= (x + w <= objects.widths + _PIXEL_TOLERANCE) & (y + h <= objects.heights + _PIXEL_TOLERANCE)
    return findings_at(
        finite & ((w < 0) | (h < 0)), objects, "box", shown, "width and height of 0 or more"
    ) + findings_at(
        finite & (w >= 0) & (h >= 0) & ~inside,
        objects,
        "box outside",
        lambda i: f"{shown(i)} in an image of {objects.widths[i]} x {objects.heights[i]} pixels",
        "a box within it",
    )


def _check_order(objects: Objects) -> Findings:
    """Scores are from 0 to 1, best first in every row."""
    scores = numbers(pc.struct_field(objects.structs, "score"))
    outside = np.isfinite(scores) & ((scores < 0) | (scores > 1))
    rises = np.zeros(len(objects), np.bool_)
    rises[1:] = (objects.row[1:] == objects.row[:-1]) & (scores[1:] > scores[:-1])
    return findings_at(outside, objects, "score", lambda i: str(scores[i]), "a number from 0 to 1") + findings_at(
        rises, objects, "order of scores", lambda i: f"{scores[i]:.6g} after {scores[i - 1]:.6g}", "best first"
    )


def _check_mask_positions(objects: Objects, indices: _Int64) -> Findings:
    """A mask doesn't reach far out of its box. `indices` [D'] are objects whose run lengths are sound."""
    corners = box_corners(objects)
    indices = indices[np.isfinite(corners[indices]).all(axis=1)]
    if len(indices) == 0:
        return NOTHING_FOUND
    boxes, segmentations = (pc.struct_field(objects.structs, name) for name in ("bbox", "segmentation"))
    texts = pc.struct_field(segmentations, "counts").take(pa.array(indices)).to_pylist()
    sizes = zip(objects.heights[indices].tolist(), objects.widths[indices].tolist(), strict=True)
    encoded = [
        {"size": [height, width], "counts": text.encode()} for (height, width), text in zip(sizes, texts, strict=True)
    ]
    x, y, w, h = corners[indices].T
    drawn = np.zeros((len(objects), 4))
    drawn[indices] = coco_mask.toBbox(encoded)
    left, top, wide, high = drawn[indices].T
    outside = (left < x - _MASK_TOLERANCE) | (top < y - _MASK_TOLERANCE)
    outside |= (left + wide > x + w + _MASK_TOLERANCE) | (top + high > y + h + _MASK_TOLERANCE)
    bad = np.zeros(len(objects), np.bool_)
    bad[indices[outside & (wide > 0)]] = True  # an empty mask has no place
    return findings_at(
        bad,
        objects,
        "mask outside its box",
        lambda i: f"mask in {drawn[i].tolist()}, box {boxes[i].as_py()}",
        f"within {_MASK_TOLERANCE:g} pixels",
    )
