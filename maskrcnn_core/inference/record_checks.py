"""What a label row must keep to (`records`, `proposal_records`), checked for a batch of rows at once.

One file's rows are judged here, by themselves; that a run's files together hold every image once is
`pipelines.verification`'s part. Columns are checked as whole arrays; only rows that break a rule become Python objects.

Letters: R rows (images), D objects of all of them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools import mask as coco_mask

from maskrcnn_core.config import Category
from maskrcnn_core.errors import ImageStatus
from maskrcnn_core.inference.rle_checks import FAULTS, check_runs

STATUSES = ("ok", *get_args(ImageStatus))

_Bool = npt.NDArray[np.bool_]
_Int64 = npt.NDArray[np.int64]
_Float64 = npt.NDArray[np.float64]

# float32 places of a 30,000 pixel image are 0.002 pixels apart, and x + width rounds twice.
_PIXEL_TOLERANCE = 0.01

# A mask is drawn inside its box: it may reach into the pixels that the box's edges cut, and one further where a paste
# rule rounds the box outwards.
_MASK_TOLERANCE = 2.0

_SHOWN_PER_CHECK = 5


@dataclass(frozen=True)
class Offence:
    """One rule that is broken.

    Attributes:
        check: the rule in a word or two.
        got, expected: what is there, and what should be.
        image_id: the row's; None where a file or the run as a whole is meant.
        file: uri of the label file; empty where no single file is to blame, or none is known yet.
    """

    check: str
    got: str
    expected: str
    image_id: int | None = None
    file: str = ""


@dataclass(frozen=True)
class Findings:
    """Broken rules: how often each, and the first ones of each.

    Attributes:
        counts: offences by `check`.
        first: at most some for each check, in order of rows.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    first: tuple[Offence, ...] = ()

    def __add__(self, other: "Findings") -> "Findings":
        counts = dict(Counter(self.counts) + Counter(other.counts))
        shown: Counter[str] = Counter()
        first = []
        for offence in (*self.first, *other.first):
            shown[offence.check] += 1
            if shown[offence.check] <= _SHOWN_PER_CHECK:
                first.append(offence)
        return Findings(counts, tuple(first))


NOTHING_FOUND = Findings()


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


@dataclass(frozen=True)
class _Objects:
    """The objects of a batch as whole columns.

    Attributes:
        structs: [D] the record's structs.
        row: [D] index of the image of each.
        image_ids: [D].
        heights, widths: [D] of the image, pixels; 0 where unknown.
    """

    structs: pa.StructArray
    row: _Int64
    image_ids: _Int64
    heights: _Int64
    widths: _Int64

    def __len__(self) -> int:
        return len(self.row)


def one(check: str, got: str, expected: str, image_id: int | None = None, file: str = "") -> Findings:
    """A single offence as findings."""
    return Findings({check: 1}, (Offence(check, got, expected, image_id, file),))


def count_rows(rows: pa.RecordBatch) -> RowCounts:
    """Rows by status, objects and masks of a batch of label or proposal records."""
    statuses = {entry["values"]: entry["counts"] for entry in rows.column("status").value_counts().to_pylist()}
    structs = pc.list_flatten(rows.column(_objects_column(rows.schema)))
    masks = 0
    if structs.type.get_field_index("segmentation") >= 0:
        masks = len(structs) - pc.struct_field(structs, "segmentation").null_count
    return RowCounts(statuses, len(structs), masks)


def check_rows(rows: pa.RecordBatch, categories: Sequence[Category], model: str | None) -> Findings:
    """Every rule that a row has to keep by itself.

    Args:
        rows: label or proposal records.
        categories: the file's category table; not asked of proposals.
        model: fingerprint that every row must carry; None = any.
    """
    image_ids = rows.column("image_id").to_numpy()
    findings = _check_images(rows, image_ids) + _check_model(rows, image_ids, model)
    found = _objects(rows, image_ids)
    if len(found) == 0:
        return findings
    findings += _check_boxes(found) + _check_scores(found)
    if _objects_column(rows.schema) == "detections":
        findings += _check_categories(found, categories) + _check_keypoints(found) + _check_masks(found)
    return findings


def _objects_column(schema: pa.Schema) -> str:
    return "proposals" if "proposals" in schema.names else "detections"


def _objects(rows: pa.RecordBatch, image_ids: _Int64) -> _Objects:
    column = rows.column(_objects_column(rows.schema))
    row = pc.list_parent_indices(column).to_numpy().astype(np.int64)
    heights, widths = (pc.fill_null(rows.column(name), 0).to_numpy().astype(np.int64) for name in ("height", "width"))
    return _Objects(pc.list_flatten(column), row, image_ids[row], heights[row], widths[row])


def _findings(check: str, bad: _Bool, image_ids: _Int64, got: Callable[[int], str], expected: str) -> Findings:
    """Findings of one check; `got` says what is there at a place where `bad` is set."""
    places = np.flatnonzero(bad)
    if len(places) == 0:
        return NOTHING_FOUND
    shown = places[:_SHOWN_PER_CHECK].tolist()
    first = tuple(Offence(check, got(place), expected, int(image_ids[place])) for place in shown)
    return Findings({check: len(places)}, first)


def _check_images(rows: pa.RecordBatch, image_ids: _Int64) -> Findings:
    """Status, error, size and number of objects fit together."""
    statuses, errors = rows.column("status"), rows.column("error")
    known = _flags(pc.is_in(statuses, value_set=pa.array(STATUSES)))
    ok = _flags(pc.equal(statuses, "ok"))
    has_error = _flags(pc.greater(pc.utf8_length(errors), 0))
    heights, widths = (pc.fill_null(rows.column(name), 0).to_numpy() for name in ("height", "width"))
    objects = pc.fill_null(pc.list_value_length(rows.column(_objects_column(rows.schema))), 0).to_numpy()

    def status(place: int) -> str:
        return repr(statuses[place].as_py())

    return (
        _findings("status", ~known, image_ids, status, f"one of {', '.join(STATUSES)}")
        + _findings("error", ok & has_error, image_ids, lambda i: f"ok with error {errors[i].as_py()!r:.80}", "none")
        + _findings("error", ~ok & ~has_error, image_ids, lambda i: f"{status(i)} without error", "the reason")
        + _findings(
            "size",
            ok & ((heights <= 0) | (widths <= 0)),
            image_ids,
            lambda i: f"ok with width {rows.column('width')[i].as_py()}, height {rows.column('height')[i].as_py()}",
            "numbers above 0",
        )
        + _findings(
            "failed row",
            ~ok & (objects > 0),
            image_ids,
            lambda i: f"{status(i)} with {objects[i]} objects",
            "none in an image that failed",
        )
    )


def _check_model(rows: pa.RecordBatch, image_ids: _Int64, model: str | None) -> Findings:
    if model is None:
        return NOTHING_FOUND
    models = rows.column("model")
    other = ~_flags(pc.equal(models, model))
    return _findings("model", other, image_ids, lambda i: str(models[i].as_py()), f"the run's fingerprint {model}")


def _flags(array: pa.Array) -> _Bool:
    """Nulls count as False."""
    flags: _Bool = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
    return flags


def _numbers(array: pa.Array) -> _Float64:
    """Nulls become NaN."""
    numbers: _Float64 = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def _check_boxes(found: _Objects) -> Findings:
    """Four finite numbers, no negative extent, inside the image."""
    boxes = pc.struct_field(found.structs, "bbox")
    whole = pc.fill_null(pc.list_value_length(boxes), 0).to_numpy() == 4
    corners = np.full((len(found), 4), np.nan)
    corners[whole] = _numbers(pc.list_flatten(boxes.filter(pa.array(whole)))).reshape(-1, 4)
    finite = np.isfinite(corners).all(axis=1)

    def shown(place: int) -> str:
        return f"box {boxes[place].as_py()}"

    x, y, w, h = np.nan_to_num(corners).T
    inside = (x >= -_PIXEL_TOLERANCE) & (y >= -_PIXEL_TOLERANCE)
    inside &= (x + w <= found.widths + _PIXEL_TOLERANCE) & (y + h <= found.heights + _PIXEL_TOLERANCE)
    return (
        _findings("box", ~finite, found.image_ids, shown, "four finite numbers")
        + _findings("box", finite & ((w < 0) | (h < 0)), found.image_ids, shown, "width and height of 0 or more")
        + _findings(
            "box outside",
            finite & (w >= 0) & (h >= 0) & ~inside,
            found.image_ids,
            lambda i: f"{shown(i)} in an image of {found.widths[i]} x {found.heights[i]} pixels",
            "a box within it",
        )
    )


def _check_scores(found: _Objects) -> Findings:
    """From 0 to 1, best first in every row."""
    scores = _numbers(pc.struct_field(found.structs, "score"))
    valid = (scores >= 0) & (scores <= 1)  # false for NaN
    rises = np.zeros(len(found), np.bool_)
    rises[1:] = (found.row[1:] == found.row[:-1]) & (scores[1:] > scores[:-1])
    return _findings("score", ~valid, found.image_ids, lambda i: str(scores[i]), "a number from 0 to 1") + _findings(
        "order of scores", rises, found.image_ids, lambda i: f"{scores[i]:.6g} after {scores[i - 1]:.6g}", "best first"
    )


def _check_categories(found: _Objects, categories: Sequence[Category]) -> Findings:
    """Id and name stand together in the file's category table."""
    ids, names = (pc.struct_field(found.structs, name) for name in ("category_id", "category"))
    known = {category.id: category.name for category in categories}
    pairs = pa.table({"id": ids, "name": names}).group_by(["id", "name"]).aggregate([]).to_pylist()
    wrong = [pair for pair in pairs if known.get(pair["id"]) != pair["name"] or pair["name"] is None]
    bad = np.zeros(len(found), np.bool_)
    for pair in wrong:
        same_name = pc.is_null(names) if pair["name"] is None else pc.equal(names, pair["name"])
        bad |= _flags(pc.and_(pc.equal(ids, pair["id"]), same_name))
    expected = f"one of the {len(known)} in the file's category table"
    return _findings("category", bad, found.image_ids, lambda i: f"{ids[i].as_py()} {names[i].as_py()!r}", expected)


def _check_keypoints(found: _Objects) -> Findings:
    """x, y, v for each keypoint, all finite."""
    lists = pc.struct_field(found.structs, "keypoints")
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    values = _numbers(pc.list_flatten(lists))
    owner = np.repeat(np.arange(len(found)), lengths)
    not_finite = np.zeros(len(found), np.bool_)
    not_finite[owner[~np.isfinite(values)]] = True
    return _findings(
        "keypoints", lengths % 3 != 0, found.image_ids, lambda i: f"{lengths[i]} numbers", "a multiple of 3"
    ) + _findings(
        "keypoints", not_finite, found.image_ids, lambda i: f"{lists[i].as_py()!s:.80}", "finite numbers x, y, v"
    )


def _check_masks(found: _Objects) -> Findings:
    """Of the image's size, decodable, and inside the object's box."""
    segmentations = pc.struct_field(found.structs, "segmentation")
    given = _flags(pc.is_valid(segmentations))
    if not given.any():
        return NOTHING_FOUND
    sizes, counts = (pc.struct_field(segmentations, name) for name in ("size", "counts"))
    heights, widths = _sizes(sizes)
    right_size = (heights == found.heights) & (widths == found.widths)
    has_text = _flags(pc.is_valid(counts))
    findings = _findings(
        "mask size",
        given & ~right_size,
        found.image_ids,
        lambda i: f"size {sizes[i].as_py()}",
        "the image's [height, width]",
    ) + _findings("mask", given & ~has_text, found.image_ids, lambda i: "no counts", "compressed run lengths")
    places = np.flatnonzero(given & right_size & has_text)
    pixels = (found.heights * found.widths)[places]
    runs = check_runs(counts.take(pa.array(places)), pixels)

    def fault(place: int) -> str:
        text = f"{FAULTS[runs.faults[place]]} ({runs.pixels[place]} of {pixels[place]} pixels)"
        return f"run lengths {counts[int(places[place])].as_py()!r:.60}: {text}"

    findings += _findings("mask", runs.faults > 0, found.image_ids[places], fault, "run lengths of the image")
    sound = places[(runs.faults == 0) & (runs.areas > 0)]  # an empty mask has no place
    return findings + _check_mask_places(found, sound, counts.take(pa.array(sound)))


def _sizes(sizes: pa.Array) -> tuple[_Int64, _Int64]:
    """[D] height and width of each mask; -1 where there aren't two numbers."""
    pairs = pc.fill_null(pc.list_value_length(sizes), 0).to_numpy() == 2
    both = np.full((len(sizes), 2), -1, np.int64)
    both[pairs] = pc.fill_null(pc.list_flatten(sizes.filter(pa.array(pairs))), -1).to_numpy().reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _check_mask_places(found: _Objects, places: _Int64, counts: pa.Array) -> Findings:
    """A mask doesn't reach far out of its box. `places` [D'] are objects with pixels, whose run lengths are sound."""
    boxes = pc.struct_field(found.structs, "bbox").take(pa.array(places))
    whole = pc.fill_null(pc.list_value_length(boxes), 0).to_numpy() == 4
    places, counts, boxes = places[whole], counts.filter(pa.array(whole)), boxes.filter(pa.array(whole))
    if len(places) == 0:
        return NOTHING_FOUND
    encoded = [
        {"size": [height, width], "counts": text.encode()}
        for height, width, text in zip(
            found.heights[places].tolist(), found.widths[places].tolist(), counts.to_pylist(), strict=True
        )
    ]
    x, y, w, h = _numbers(pc.list_flatten(boxes)).reshape(-1, 4).T
    drawn = coco_mask.toBbox(encoded)
    left, top, wide, high = drawn.T
    outside = (left < x - _MASK_TOLERANCE) | (top < y - _MASK_TOLERANCE)
    outside |= (left + wide > x + w + _MASK_TOLERANCE) | (top + high > y + h + _MASK_TOLERANCE)
    return _findings(
        "mask outside its box",
        outside,
        found.image_ids[places],
        lambda i: f"mask in {drawn[i].tolist()}, box {boxes[i].as_py()}",
        f"within {_MASK_TOLERANCE:g} pixels",
    )
