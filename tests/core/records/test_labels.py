"""Label records to Arrow and Parquet and back, with the category table beside them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from maskrcnn_core.config.model import Category
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import (
    RECORD_FIELDS,
    ImageRecord,
    record_from_row,
    record_schema,
    records_to_table,
    schema_categories,
)

CATEGORIES = (Category(18, "dog"), Category(1, "Straße"))


def exact(value: float) -> float:
    """As a float32 column keeps it."""
    return float(np.float32(value))


RECORDS = (
    ImageRecord(
        "ok",
        None,
        640,
        480,
        (
            DetectionRecord(18, "dog", exact(0.9), (1.5, 2.25, 30.0, exact(40.1)), "abc0"),
            DetectionRecord(1, "Straße", 0.5, (0.0, 0.0, 1.0, 1.0)),
            DetectionRecord(1, "Straße", 0.25, (0.0, 0.0, 1.0, 1.0), keypoints=(1.0, 2.0, 2.0)),
        ),
    ),
    ImageRecord("ok", None, 1, 1),
    ImageRecord("unreadable", "not an image", None, None),
    ImageRecord("failed", "RuntimeError: x", 3, 4),
)


def table() -> pa.Table:
    uris = [f"s3://bucket/{number}.jpg" for number in range(4)]
    return records_to_table([5, 2**40, 7, 8], uris, RECORDS, "f" * 32, record_schema(CATEGORIES))


def test_rows_by_eye() -> None:
    rows = table().to_pylist()
    assert [row["image_id"] for row in rows] == [5, 2**40, 7, 8]
    assert [row["status"] for row in rows] == ["ok", "ok", "unreadable", "failed"]
    assert {row["model"] for row in rows} == {"f" * 32}
    first, second, third = rows[0]["detections"]
    assert first["segmentation"] == {"size": [480, 640], "counts": "abc0"}  # height, width
    assert first["keypoints"] is None
    assert second["segmentation"] is None
    assert third["keypoints"] == [1, 2, 2]
    assert rows[1]["detections"] == rows[2]["detections"] == []
    assert (rows[2]["width"], rows[2]["height"], rows[2]["error"]) == (None, None, "not an image")


def test_round_trip() -> None:
    assert tuple(record_from_row(row) for row in table().to_pylist()) == RECORDS


def test_round_trip_by_a_file(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(table(), tmp_path / "labels.parquet")
    read = pyarrow.parquet.read_table(tmp_path / "labels.parquet")
    assert read.schema.names == [field.name for field in RECORD_FIELDS]
    assert tuple(record_from_row(row) for row in read.to_pylist()) == RECORDS
    assert schema_categories(read.schema) == CATEGORIES
    assert read.schema.metadata[b"maskrcnn.schema_version"] == b"1"


def test_schema_types() -> None:
    schema = record_schema(CATEGORIES)
    assert {field.name: str(field.type) for field in schema if field.name != "detections"} == {
        "image_id": "int64",
        "uri": "string",
        "width": "int32",
        "height": "int32",
        "status": "string",
        "error": "string",
        "model": "string",
    }
    detection = schema.field("detections").type.value_type
    assert {field.name: str(field.type) for field in detection if field.name not in ("bbox", "keypoints")} == {
        "category_id": "int32",
        "category": "string",
        "score": "float",
        "segmentation": "struct<size: list<item: int32>, counts: string>",
    }


def test_no_rows_keep_the_schema() -> None:
    empty = records_to_table([], [], [], "m", record_schema(()))
    assert empty.num_rows == 0
    assert empty.schema.equals(record_schema(()), check_metadata=True)
    assert schema_categories(empty.schema) == ()


def test_a_schema_of_others_has_no_categories() -> None:
    assert schema_categories(pa.schema([pa.field("x", pa.int32())])) == ()
    assert schema_categories(pa.schema([], metadata={b"pandas": b"{}"})) == ()


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        records_to_table([1], ["a", "b"], RECORDS[:1], "m", record_schema(()))
