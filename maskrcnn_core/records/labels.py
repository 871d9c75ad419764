"""The label record: one row per image, also for an image with nothing in it, also for one that failed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import StorageError
from maskrcnn_core.records.detections import DETECTION_TYPE, DetectionRecord, detections_array

SCHEMA_VERSION = "1"
VERSION_KEY = b"maskrcnn.schema_version"
"""Where a label file's metadata holds the version of its schema."""
CATEGORIES_KEY = b"maskrcnn.categories"
"""And the categories, as JSON."""

RECORD_FIELDS = (
    pa.field("image_id", pa.int64(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("detections", pa.list_(DETECTION_TYPE), nullable=False),
    pa.field("model", pa.string(), nullable=False),
)


class ImageOutcome(Protocol):
    """What every kind of record says of its image, as `ImageRecord` documents it."""

    @property
    def status(self) -> str:
        """Of the image."""
        ...

    @property
    def error(self) -> str | None:
        """One line."""
        ...

    @property
    def width(self) -> int | None:
        """Pixels."""
        ...

    @property
    def height(self) -> int | None:
        """Pixels."""
        ...


@dataclass(frozen=True)
class ImageRecord:
    """What became of one image.

    Attributes:
        status: `ok`, or an `ImageStatus` of `maskrcnn_core.errors`.
        error: one line, None where ok.
        width, height: original pixels as oriented for the model; None if the image never decoded.
        detections: best first, as `DetectionColumns` or one by one; empty where the image failed.
    """

    status: str
    error: str | None
    width: int | None
    height: int | None
    detections: Sequence[DetectionRecord] = ()


def record_schema(categories: Sequence[Category]) -> pa.Schema:
    """The Arrow schema of the labels, with its version and the category table in the metadata."""
    table = [{"id": category.id, "name": category.name} for category in categories]
    metadata = {
        VERSION_KEY: SCHEMA_VERSION.encode(),
        CATEGORIES_KEY: json.dumps(table, separators=(",", ":")).encode(),
    }
    return pa.schema(RECORD_FIELDS, metadata=metadata)


def schema_categories(schema: pa.Schema) -> tuple[Category, ...]:
    """The category table that `record_schema` stored; empty if the file carries none.

    Raises:
        StorageError: the metadata holds something else there; says nothing of the file.
    """
    stored = (schema.metadata or {}).get(CATEGORIES_KEY)
    if not stored:
        return ()
    try:
        categories = tuple(_category(entry) for entry in json.loads(stored))
        if len({category.id for category in categories}) == len(categories):
            return categories
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise StorageError(
        f"its metadata have {stored[:60]!r} as {CATEGORIES_KEY.decode()}, expected a JSON list of "
        'categories such as {"id": 1, "name": "person"}, each id once'
    )


def _category(entry: Any) -> Category:
    number, name = entry["id"], entry["name"]
    if type(number) is not int or abs(number) >= 1 << 31 or not isinstance(name, str):
        raise TypeError(entry)
    return Category(number, name.encode("utf-8", "replace").decode())  # JSON may hold halves of characters


def require_version(schema: pa.Schema) -> None:
    """A file without a version is taken for one of this release's.

    Raises:
        StorageError: another version; says nothing of the file.
    """
    version = (schema.metadata or {}).get(VERSION_KEY, SCHEMA_VERSION.encode())
    if version != SCHEMA_VERSION.encode():
        shown = version[:20].decode("utf-8", "replace")
        raise StorageError(f"label schema version {shown}; this release reads {SCHEMA_VERSION}")


def records_to_table(
    image_ids: Sequence[int], uris: Sequence[str], records: Sequence[ImageRecord], model: str, schema: pa.Schema
) -> pa.Table:
    """Rows of the labels, one for each image, in order.

    Args:
        image_ids, uris, records: equally long.
        model: fingerprint of weights and settings.
        schema: from `record_schema`.
    """
    sizes = [(record.height, record.width) for record in records]
    detections = detections_array([record.detections for record in records], sizes)
    return rows_of_images(image_ids, uris, records, detections, model, schema)


def rows_of_images(
    image_ids: Sequence[int],
    uris: Sequence[str],
    records: Sequence[ImageOutcome],
    objects: pa.ListArray,
    model: str,
    schema: pa.Schema,
) -> pa.Table:
    """A table of a schema with the columns of `RECORD_FIELDS`, whose `detections` may bear another name.

    Args:
        image_ids, uris, records, objects: equally long.
        model: fingerprint of weights and settings.
    """
    columns = (
        list(image_ids),
        list(uris),
        [record.width for record in records],
        [record.height for record in records],
        [record.status for record in records],
        [record.error for record in records],
        objects,
        [model] * len(records),
    )
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.table(arrays, schema=schema)


def record_from_row(row: Mapping[str, Any]) -> ImageRecord:
    """The inverse of `records_to_table` for one row (as of `Table.to_pylist`)."""
    return ImageRecord(
        status=row["status"],
        error=row.get("error"),
        width=row["width"],
        height=row["height"],
        detections=tuple(
            DetectionRecord(
                category_id=detection["category_id"],
                category=detection["category"],
                score=detection["score"],
                bbox=tuple(detection["bbox"]),
                rle_counts=detection["segmentation"]["counts"] if detection["segmentation"] else None,
                keypoints=tuple(detection["keypoints"]) if detection["keypoints"] is not None else None,
            )
            for detection in row["detections"]
        ),
    )


def with_category_ids(rows: pa.RecordBatch, ids: Mapping[int, int]) -> pa.RecordBatch:
    """The same rows with other category ids.

    Args:
        rows: label records with `detections`, none of them null.
        ids: id there -> id wanted, as far as they differ.
    """
    if not ids:
        return rows
    lists = rows.column("detections")
    structs, lengths = pc.list_flatten(lists), pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    present, inverse = np.unique(structs.field("category_id").to_numpy(zero_copy_only=False), return_inverse=True)
    wanted = np.array([ids.get(number, number) for number in present.tolist()], np.int32)[inverse]
    fields = [structs.type.field(index) for index in range(structs.type.num_fields)]
    columns = [pa.array(wanted) if one.name == "category_id" else structs.field(one.name) for one in fields]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    changed = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=fields), type=lists.type)
    position = rows.schema.get_field_index("detections")
    return rows.set_column(position, rows.schema.field(position), changed)
