"""Parquet shards -> columns: annotations of millions of images, with no JSON at all.

    FOLDER/categories.json     list of categories, as COCO has it
    FOLDER/images/*.parquet    id, file_name, width, height
    FOLDER/objects/*.parquet   image_id, category_id, bbox; and, where there are any: id, area, iscrowd, polygons,
                               counts, keypoints, num_keypoints (`column_schema`)

Shards are read in the order of their names. What becomes of a faulty row is what becomes of such an entry of a COCO
file: rows in which nothing is odd pass as arrays, the others are looked at one by one (`annotations`). Without `id`,
objects are numbered from 1 in their order.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from maskrcnn_core.data.coco.column_rows import image_table, lists
from maskrcnn_core.data.coco.column_schema import IMAGES, OBJECTS
from maskrcnn_core.data.coco.columns import AnnotationColumns
from maskrcnn_core.data.coco.columns_writer import ColumnsWriter
from maskrcnn_core.data.coco.conversion import AskedSizes, Converted, ImageSizes, Reader, convert_entries
from maskrcnn_core.data.coco.entry_faults import MOST_KEPT, Faults
from maskrcnn_core.data.coco.sections import LONGEST_SIDE, MOST_PIXELS, CocoDict, CocoSections
from maskrcnn_core.data.coco.shard_types import fitted, typed
from maskrcnn_core.data.coco.values import whole
from maskrcnn_core.data.segmentation import reach
from maskrcnn_core.errors import AnnotationError

IMAGE_COLUMNS = ("id", "file_name", "width", "height")
"""That shards of images have; LVIS' lists may stand beside them."""

OBJECT_COLUMNS = ("image_id", "category_id", "bbox")
"""That shards of objects have."""

OPTIONAL_COLUMNS = ("id", "area", "iscrowd", "polygons", "counts", "keypoints", "num_keypoints")
"""That shards of objects may have."""

_LARGEST_AREA = 1e300


def columns_of_shards(
    categories: Iterable[Any],
    images: Iterable[pa.Table],
    objects: Iterable[pa.RecordBatch],
    reader: Reader,
    *,
    source: str,
    digest: str = "",
    folder: Path | None = None,
) -> AnnotationColumns:
    """Read and check annotations in shards.

    Args:
        categories: as in a COCO file.
        images, objects: in the order of the shards.
        reader: what is needed of the images.
        source, digest: of the shards, as `ColumnsInfo` keeps them.
        folder: an empty one, for the columns; None = they stay in memory.

    Raises:
        AnnotationError: a column is missing, or the annotations are wrong; says what, without the shards' name.
    """
    sizes = AskedSizes(reader.sizes)
    sections = CocoSections(names=reader.names, sizes=sizes.given, keypoints=False)
    for entry in categories:
        sections.add_category(entry)
    image_rows = _images(images, sections)
    sections.require_sound()
    keypoints = {one["id"]: len(one["keypoints"]) for one in sections.categories if "keypoints" in one}
    known, writer, number = _sizes(image_rows, sections), ColumnsWriter(folder), 1
    try:
        for batch in objects:
            converted = convert_rows(batch, known, keypoints, number)
            converted.ids.require_sound()
            sections.absorb(converted.ids)
            sections.faults.extend(converted.faults)
            writer.add(converted.objects)
            number += batch.num_rows
        sections.finish()
        return writer.finished(sections, image_rows, source=source, digest=digest, sized_by_pictures=sizes.looked)
    finally:
        writer.close()


def _images(tables: Iterable[pa.Table], sections: CocoSections) -> pa.Table:
    """Clean rows; what is odd is looked at by `sections`, which then knows the ids of all others."""
    sound, odd, begin = [], [], 0
    for given in tables:
        table = typed(given, IMAGES, IMAGE_COLUMNS, "images")
        rows = _image_rows(table)
        good = _sound_images(rows, table)
        sound.append(rows.filter(pa.array(good)).append_column("row", pa.array(begin + np.flatnonzero(good))))
        for place in np.flatnonzero(~good).tolist():
            entry = {name: value for name, value in table.slice(place, 1).to_pylist()[0].items() if value is not None}
            sections.add_image(entry)
            identity = whole(entry.get("id"))
            if identity in sections.images:
                odd.append((begin + place, sections.images[identity]))
        begin += table.num_rows
    rows = pa.concat_tables(sound) if sound else image_table(()).append_column("row", pa.array([], pa.int64()))
    if odd:
        added = image_table(image for _, image in odd).append_column("row", pa.array([row for row, _ in odd]))
        rows = pa.concat_tables([rows, added]).sort_by("row")
    ids = rows.column("id").to_numpy()
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        doubled = ", ".join(str(value) for value in values[counts > 1][:5].tolist())
        raise AnnotationError(f"images {doubled}: listed twice. To mend: give each image one row.")
    sections.sound_images = ids
    return rows.drop_columns("row").combine_chunks()


def _image_rows(table: pa.Table) -> pa.Table:
    columns = []
    for field in IMAGES:
        has_it = field.name in table.column_names
        columns.append(fitted(table.column(field.name), field) if has_it else pa.nulls(table.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=IMAGES)


def _sound_images(rows: pa.Table, given: pa.Table) -> NDArray[np.bool_]:
    """Rows with an id, a name and a size, all of whose values are what they were given as: [rows]."""
    complete = pc.and_(pc.is_valid(rows["id"]), pc.greater(pc.fill_null(pc.utf8_length(rows["file_name"]), 0), 0))
    for name in given.column_names:
        complete = pc.and_(complete, pc.equal(pc.is_valid(rows[name]), pc.is_valid(given[name])))
    sides = [pc.fill_null(rows[name], 0).to_numpy().astype(np.int64) for name in ("width", "height")]
    fits = [(side > 0) & (side <= LONGEST_SIDE) for side in sides]
    good: NDArray[np.bool_] = complete.to_numpy().astype(bool) & fits[0] & fits[1]
    good &= sides[0] * sides[1] <= MOST_PIXELS
    return good


def _sizes(images: pa.Table, sections: CocoSections) -> ImageSizes:
    ids = images.column("id").to_numpy()
    order = np.argsort(ids, kind="stable")
    sizes = np.stack([images.column(name).to_numpy() for name in ("height", "width")], axis=1)
    return ImageSizes(ids[order], sizes[order], frozenset(sections.left_out))


class _Rows(NamedTuple):
    """Numbers of objects, [rows] each; what is missing or null is not sound."""

    ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int32]
    boxes: NDArray[np.float64]  # [rows, 4]
    areas: NDArray[np.float64]
    crowds: NDArray[np.uint8]
    is_complete: NDArray[np.bool_]


def convert_rows(batch: pa.RecordBatch, images: ImageSizes, keypoints: Mapping[int, int], first_id: int) -> Converted:
    """Columns of some rows of objects.

    Args:
        images: of all shards.
        keypoints: their number by category id.
        first_id: of the first row, where there is no column `id`.

    Raises:
        AnnotationError: a column is missing or of another type.
    """
    batch = typed(batch, OBJECTS, OBJECT_COLUMNS, "objects")
    rows = _numbers(batch, first_id)
    sound = _sound_objects(batch, rows, images)
    odd = np.flatnonzero(~sound)
    converted = convert_entries(_entries(batch.take(pa.array(odd)), rows.ids[odd], images), images, keypoints)
    converted.ids.add_ids(rows.ids[sound], rows.image_ids[sound], rows.category_ids[sound])
    plain = _plain_batch(rows, sound)
    no_mask = np.flatnonzero(sound & (rows.crowds == 0))
    lines = tuple(
        f"annotation {rows.ids[row]} of image {rows.image_ids[row]}: no segmentation" for row in no_mask[:MOST_KEPT]
    )
    faults = converted.faults + (Faults({"no mask": len(no_mask)}, {"no mask": lines}) if lines else Faults())
    objects = plain if not converted.objects.num_rows else _in_order(plain, converted.objects, rows.ids)
    return Converted(objects, converted.ids, faults)


def _numbers(batch: pa.RecordBatch, first_id: int) -> _Rows:
    number = batch.num_rows
    complete = np.ones(number, np.bool_)

    def column(name: str, default: NDArray[Any]) -> NDArray[Any]:
        if name not in batch.schema.names:
            return default
        values = fitted(batch.column(name), OBJECTS.field(name))
        complete[:] &= values.is_valid().to_numpy(zero_copy_only=False)
        filled: NDArray[Any] = values.fill_null(0).to_numpy(zero_copy_only=False)
        return filled

    boxes = batch.column("bbox")
    fours = pc.fill_null(pc.equal(pc.list_value_length(boxes), 4), False).to_numpy(zero_copy_only=False)
    corners = np.zeros((number, 4))
    flat = fitted(pc.list_flatten(boxes.filter(pa.array(fours))), pa.field("bbox", pa.float64()))
    corners[fours] = flat.to_numpy(zero_copy_only=False).reshape(-1, 4)  # a null becomes no number
    return _Rows(
        column("id", np.arange(first_id, first_id + number)),
        column("image_id", np.zeros(0)),
        column("category_id", np.zeros(0)),
        corners,
        column("area", corners[:, 2] * corners[:, 3]),
        column("iscrowd", np.zeros(number, np.uint8)),
        complete & fours,
    )


def _sound_objects(batch: pa.RecordBatch, rows: _Rows, images: ImageSizes) -> NDArray[np.bool_]:
    """Rows that `read_annotation` would leave as they are, since they are a box in a known image and no more."""
    places = np.minimum(np.searchsorted(images.ids, rows.image_ids), max(len(images.ids) - 1, 0))
    if not len(images.ids):
        return np.zeros(len(rows.ids), np.bool_)
    height, width = images.sizes[places].T.astype(np.float64)
    far = reach_of(height, width)
    x, y, across, down = rows.boxes.T
    near = (across > 0) & (down > 0) & (x >= -far) & (x < width) & (y >= -far) & (y < height)
    near &= (x + across > 0) & (x + across <= width + far) & (y + down > 0) & (y + down <= height + far)
    good: NDArray[np.bool_] = rows.is_complete & (images.ids[places] == rows.image_ids) & (width > 0) & near
    good &= (rows.areas >= 0) & (rows.areas < _LARGEST_AREA) & (rows.crowds <= 1)
    for name in ("polygons", "counts", "keypoints"):
        if name in batch.schema.names:
            column = batch.column(name)
            lengths = pc.binary_length(column) if name == "counts" else pc.list_value_length(column)
            good &= pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False) == 0
    return good


def reach_of(height: NDArray[np.float64], width: NDArray[np.float64]) -> NDArray[np.float64]:
    """`segmentation.reach` of many images."""
    assert reach(3, 5) == 4096.0 + 4.0 * 5
    return 4096.0 + 4.0 * np.maximum(height, width)


def _entries(batch: pa.RecordBatch, ids: NDArray[np.int64], images: ImageSizes) -> Iterator[CocoDict]:
    """Rows as a COCO file would have them."""
    image_ids = (whole(one) for one in batch.column("image_id").to_pylist())
    known = images.among(one for one in image_ids if one is not None)
    for row, number in zip(batch.to_pylist(), ids.tolist(), strict=True):
        entry = dict(row)
        entry.setdefault("id", number)
        polygons, counts = entry.pop("polygons", None), entry.pop("counts", None)
        image = known.get(whole(entry["image_id"]), {})  # type: ignore[arg-type]
        if polygons:
            entry["segmentation"] = polygons
        elif counts:
            entry["segmentation"] = {"size": [image.get("height"), image.get("width")], "counts": counts}
        if entry.get("num_keypoints") is None:
            entry.pop("num_keypoints", None)
        yield entry


def _plain_batch(rows: _Rows, chosen: NDArray[np.bool_]) -> pa.RecordBatch:
    number = int(np.count_nonzero(chosen))
    nothing = np.zeros(number, np.int32)
    empty = pa.array([], pa.float64())
    columns = [
        pa.array(rows.ids[chosen].astype(np.int64)),
        pa.array(rows.image_ids[chosen].astype(np.int64)),
        pa.array(rows.category_ids[chosen].astype(np.int32)),
        pa.FixedSizeListArray.from_arrays(pa.array(rows.boxes[chosen].reshape(-1)), 4),
        pa.array(rows.areas[chosen].astype(np.float64)),
        pa.array(rows.crowds[chosen].astype(np.uint8)),
        lists(nothing, lists(nothing[:0], empty)),
        pa.array(np.full(number, "", object), pa.string()),
        lists(nothing, empty),
        pa.array(nothing),
        pa.array(np.full(number, "", object), pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=OBJECTS)


def _in_order(plain: pa.RecordBatch, others: pa.RecordBatch, ids: NDArray[np.int64]) -> pa.RecordBatch:
    """Both together, as the rows with these ids stood."""
    row_of = {number: row for row, number in enumerate(ids.tolist())}
    both = pa.Table.from_batches([plain, others]).combine_chunks()
    order = np.argsort([row_of[number] for number in both.column("id").to_pylist()], kind="stable")
    return both.take(pa.array(order)).combine_chunks().to_batches()[0]
