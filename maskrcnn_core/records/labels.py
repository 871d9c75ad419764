"""The label record: one row per image, also for an image with nothing in it, also for one that failed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import StorageError

SCHEMA_VERSION = "1"
VERSION_KEY = b"maskrcnn.schema_version"
"""Where a label file's metadata holds the version of its schema."""
CATEGORIES_KEY = b"maskrcnn.categories"
"""And the categories, as JSON."""

_DETECTION_TYPE = pa.struct(
    [
        pa.field("category_id", pa.int32(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("bbox", pa.list_(pa.float32()), nullable=False),
        pa.field("segmentation", pa.struct([pa.field("size", pa.list_(pa.int32())), pa.field("counts", pa.string())])),
        pa.field("keypoints", pa.list_(pa.float32())),
    ]
)

RECORD_FIELDS = (
    pa.field("image_id", pa.int64(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("detections", pa.list_(_DETECTION_TYPE), nullable=False),
    pa.field("model", pa.string(), nullable=False),
)


@dataclass(frozen=True)
class DetectionRecord:
    """One detected object in original-image pixels.

    Attributes:
        category_id: COCO category id.
        category: category name.
        score: 0 to 1.
        bbox: x, y, width, height.
        rle_counts: COCO compressed run lengths over the whole image, or None without a mask head.
        keypoints: x, y, v for each keypoint, flat, or None without a keypoint head and for categories that have none.
            x, y count pixels from the middle of the first, as COCO's do. v is the probability that the head gives to
            the place, above 0 (detectron2 and MMPose write their scores there too; COCO's scoring ignores it).
    """

    category_id: int
    category: str
    score: float
    bbox: tuple[float, float, float, float]
    rle_counts: str | None = None
    keypoints: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ImageRecord:
    """What became of one image.

    Attributes:
        status: `ok`, or an `ImageStatus` of `maskrcnn_core.errors`.
        error: one line, None where ok.
        width, height: original pixels as oriented for the model; None if the image never decoded.
        detections: best first; empty where the image failed.
    """

    status: str
    error: str | None
    width: int | None
    height: int | None
    detections: tuple[DetectionRecord, ...] = ()


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
    rows = [
        {
            "image_id": image_id,
            "uri": uri,
            "width": record.width,
            "height": record.height,
            "status": record.status,
            "error": record.error,
            "detections": [_detection_row(detection, record) for detection in record.detections],
            "model": model,
        }
        for image_id, uri, record in zip(image_ids, uris, records, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def _detection_row(detection: DetectionRecord, record: ImageRecord) -> dict[str, object]:
    segmentation = None
    if detection.rle_counts is not None:
        segmentation = {"size": [record.height, record.width], "counts": detection.rle_counts}
    return {
        "category_id": detection.category_id,
        "category": detection.category,
        "score": detection.score,
        "bbox": list(detection.bbox),
        "segmentation": segmentation,
        "keypoints": None if detection.keypoints is None else list(detection.keypoints),
    }


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
