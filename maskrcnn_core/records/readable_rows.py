"""What every reader of label rows relies on (`labels`, `proposals`), checked before it reads them.

A Parquet file may come from anywhere, and its types say little about what is in it: a box of three numbers, a size that
is null, run lengths that end outside their image. `checks` knows further rules, of which a row that breaks them
is wrong, but can be read.

Columns are checked as whole arrays, those that are there; only rows that break a rule become Python objects.

Letters: R rows (images), D objects of all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import ImageStatus
from maskrcnn_core.records.rle_checks import FAULTS, check_runs
from maskrcnn_core.records.row_findings import NOTHING_FOUND, Findings, findings_at

STATUSES = ("ok", *get_args(ImageStatus))

_Bool = npt.NDArray[np.bool_]
_Int64 = npt.NDArray[np.int64]
_Float64 = npt.NDArray[np.float64]

_FILLED_COLUMNS = ("image_id", "uri", "status", "detections", "proposals")
_LONGEST_URI = 1 << 15  # bytes; a path of Linux has 4096 at most, a key of S3 1024
_FARTHEST = 2.0**31  # pixels; no image reaches so far, and products of such numbers stay finite


@dataclass(frozen=True)
class Rows:
    """The rows of a batch; see `row_findings.Placed`."""

    batch: pa.RecordBatch

    @property
    def row(self) -> _Int64:
        """See `Placed`."""
        return np.arange(len(self.batch))

    def image_id(self, index: int) -> int | None:
        """See `Placed`."""
        value: int | None = self.batch.column("image_id")[index].as_py()
        return value


@dataclass(frozen=True)
class Objects:
    """The objects of a batch as whole columns; see `row_findings.Placed`.

    Attributes:
        structs: [D] the record's structs.
        row: [D] index of the image of each.
        image_ids: [R].
        heights, widths: [D] of the image, pixels; 0 where unknown.
    """

    structs: pa.StructArray
    row: _Int64
    image_ids: pa.Array
    heights: _Int64
    widths: _Int64

    def __len__(self) -> int:
        return len(self.row)

    def image_id(self, index: int) -> int | None:
        """See `Placed`."""
        value: int | None = self.image_ids[int(self.row[index])].as_py()
        return value


def objects_column(schema: pa.Schema) -> str:
    """`proposals` or `detections`, whatever a file has."""
    return "proposals" if "proposals" in schema.names else "detections"


def objects_of(rows: pa.RecordBatch) -> Objects | None:
    """The objects of some rows; None where their column was not read."""
    name = objects_column(rows.schema)
    if name not in rows.schema.names:
        return None
    column = rows.column(name)
    row = pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int64)
    heights, widths = (filled(rows.column(key)) for key in ("height", "width"))
    return Objects(pc.list_flatten(column), row, rows.column("image_id"), heights[row], widths[row])


def check_readable(rows: pa.RecordBatch, categories: Sequence[Category] = ()) -> Findings:
    """Every rule that a reader relies on.

    Args:
        rows: columns of label or proposal records in the records' types: `image_id`, `width`, `height`, `status`, and
            perhaps others.
        categories: the file's category table; without one the rows' own names stand.
    """
    findings = check_images(rows)
    objects = objects_of(rows)
    return findings + check_objects(objects, categories) + check_masks(objects)[0] if objects else findings


def check_images(rows: pa.RecordBatch) -> Findings:
    """No value is missing, the status is known, and fits size and number of objects."""
    among = Rows(rows)
    findings = NOTHING_FOUND
    for name in (name for name in _FILLED_COLUMNS if name in rows.schema.names):
        findings += findings_at(flags(pc.is_null(rows.column(name))), among, name, lambda _: "null", "a value")
    statuses = rows.column("status")
    known = flags(pc.is_in(statuses, value_set=pa.array(STATUSES)))
    ok = flags(pc.equal(statuses, "ok"))
    heights, widths = (filled(rows.column(name)) for name in ("height", "width"))
    findings += findings_at(
        ~known & flags(pc.is_valid(statuses)),
        among,
        "status",
        lambda i: repr(statuses[i].as_py()[:60]),
        f"one of {', '.join(STATUSES)}",
    ) + findings_at(
        ok & ((heights <= 0) | (widths <= 0)),
        among,
        "size",
        lambda i: f"ok with width {rows.column('width')[i].as_py()}, height {rows.column('height')[i].as_py()}",
        "numbers above 0",
    )
    if "uri" in rows.schema.names:
        lengths = filled(pc.binary_length(rows.column("uri")))
        long = lengths > _LONGEST_URI
        findings += findings_at(long, among, "uri", lambda i: f"{lengths[i]} bytes", f"at most {_LONGEST_URI}")
    return findings + _check_failed(rows, among, ok)


def _check_failed(rows: pa.RecordBatch, among: Rows, ok: _Bool) -> Findings:
    name = objects_column(rows.schema)
    if name not in rows.schema.names:
        return NOTHING_FOUND
    objects = filled(pc.list_value_length(rows.column(name)))
    return findings_at(
        ~ok & (objects > 0),
        among,
        "failed row",
        lambda i: f"{str(rows.column('status')[i].as_py())[:60]!r} with {objects[i]} objects",
        "none in an image that failed",
    )


def check_objects(objects: Objects, categories: Sequence[Category]) -> Findings:
    """Scores, boxes and keypoints are numbers, as many as they should be; categories are named, as in the table."""
    if len(objects) == 0:
        return NOTHING_FOUND
    findings = _check_scores(objects) + _check_boxes(objects)
    if objects.structs.type.get_field_index("category_id") >= 0:
        findings += _check_categories(objects, categories) + _check_keypoints(objects)
    return findings


def flags(array: pa.Array) -> _Bool:
    """Nulls count as False."""
    values: _Bool = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
    return values


def filled(array: pa.Array) -> _Int64:
    """Whole numbers; nulls become 0."""
    values: _Int64 = pc.fill_null(array, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return values


def numbers(array: pa.Array) -> _Float64:
    """Nulls become NaN."""
    values: _Float64 = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def box_corners(objects: Objects) -> _Float64:
    """[D, 4] x, y, width, height; NaN where there are not four numbers."""
    boxes = pc.struct_field(objects.structs, "bbox")
    whole = filled(pc.list_value_length(boxes)) == 4
    corners = np.full((len(objects), 4), np.nan)
    corners[whole] = numbers(pc.list_flatten(boxes.filter(pa.array(whole)))).reshape(-1, 4)
    return corners


def _check_boxes(objects: Objects) -> Findings:
    boxes = pc.struct_field(objects.structs, "bbox")
    corners = box_corners(objects)
    bad: _Bool = ~np.all(np.abs(corners) < _FARTHEST, axis=1)  # true for NaN
    expected = f"four finite numbers below {_FARTHEST:g}"
    return findings_at(bad, objects, "box", lambda i: f"box {boxes[i].as_py()!s:.80}", expected)


def _check_scores(objects: Objects) -> Findings:
    scores = numbers(pc.struct_field(objects.structs, "score"))
    return findings_at(~np.isfinite(scores), objects, "score", lambda i: str(scores[i]), "a number from 0 to 1")


def _check_categories(objects: Objects, categories: Sequence[Category]) -> Findings:
    """Id and name are there, and stand together in the file's category table."""
    ids, names = (pc.struct_field(objects.structs, name) for name in ("category_id", "category"))
    known = {category.id: category.name for category in categories}
    pairs = pa.table({"id": ids, "name": names}).group_by(["id", "name"]).aggregate([]).to_pylist()
    bad = np.zeros(len(objects), np.bool_)
    for pair in pairs:
        there = pair["id"] is not None and pair["name"] is not None
        if not there or (known and known.get(pair["id"]) != pair["name"]):
            same = (
                pc.is_null(column) if pair[key] is None else pc.equal(column, pair[key])
                for key, column in (("id", ids), ("name", names))
            )
            bad |= flags(pc.and_(*same))
    expected = f"one of the {len(known)} in the file's category table" if known else "an id and a name"
    return findings_at(bad, objects, "category", lambda i: f"{ids[i].as_py()} {names[i].as_py()!r:.60}", expected)


def _check_keypoints(objects: Objects) -> Findings:
    """x, y, v for each keypoint, all finite."""
    lists = pc.struct_field(objects.structs, "keypoints")
    lengths = filled(pc.list_value_length(lists))
    values = numbers(pc.list_flatten(lists))
    owner = np.repeat(np.arange(len(objects)), lengths)
    not_finite = np.zeros(len(objects), np.bool_)
    not_finite[owner[~(np.abs(values) < _FARTHEST)]] = True
    return findings_at(
        lengths % 3 != 0, objects, "keypoints", lambda i: f"{lengths[i]} numbers", "a multiple of 3"
    ) + findings_at(not_finite, objects, "keypoints", lambda i: f"{lists[i].as_py()!s:.80}", "finite numbers x, y, v")


def check_masks(objects: Objects) -> tuple[Findings, _Int64]:
    """Masks are of their images' size, and decodable; the indices [D'] of those that are.

    A run beyond the image, or text that ends within a number, would make pycocotools read or write where it must not.
    """
    nowhere = np.zeros(0, np.int64)
    if len(objects) == 0 or objects.structs.type.get_field_index("segmentation") < 0:
        return NOTHING_FOUND, nowhere
    segmentations = pc.struct_field(objects.structs, "segmentation")
    given = flags(pc.is_valid(segmentations))
    if not given.any():
        return NOTHING_FOUND, nowhere
    sizes, counts = (pc.struct_field(segmentations, name) for name in ("size", "counts"))
    heights, widths = _sizes(sizes)
    right_size = (heights == objects.heights) & (widths == objects.widths)
    has_text = flags(pc.is_valid(counts))
    findings = findings_at(
        given & ~right_size,
        objects,
        "mask size",
        lambda i: f"size {sizes[i].as_py()!s:.60}",
        "the image's [height, width]",
    ) + findings_at(given & ~has_text, objects, "mask", lambda _: "no counts", "compressed run lengths")
    indices = np.flatnonzero(given & right_size & has_text)
    pixels = (objects.heights * objects.widths)[indices]
    runs = check_runs(counts.take(pa.array(indices)), pixels)
    bad = np.zeros(len(objects), np.bool_)
    bad[indices[runs.faults > 0]] = True
    position_of = np.zeros(len(objects), np.int64)
    position_of[indices] = np.arange(len(indices))

    def fault(index: int) -> str:
        own = position_of[index]
        text = f"{FAULTS[runs.faults[own]]} ({runs.pixels[own]} of {pixels[own]} pixels)"
        return f"run lengths {counts[index].as_py()!r:.60}: {text}"

    return findings + findings_at(bad, objects, "mask", fault, "run lengths of the image"), indices[runs.faults == 0]


def _sizes(sizes: pa.Array) -> tuple[_Int64, _Int64]:
    """[D] height and width of each mask; -1 where there aren't two numbers."""
    pairs = filled(pc.list_value_length(sizes)) == 2
    both = np.full((len(sizes), 2), -1, np.int64)
    sides = pc.fill_null(pc.list_flatten(sizes.filter(pa.array(pairs))), -1)
    both[pairs] = sides.to_numpy(zero_copy_only=False).reshape(-1, 2)
    return both[:, 0], both[:, 1]
