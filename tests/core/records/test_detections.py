"""Objects as columns: the rows are those that plain dictionaries would make, bit by bit."""

import itertools
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn_core.config.model import Category
from maskrcnn_core.records.detections import DetectionColumns, DetectionRecord
from maskrcnn_core.records.labels import ImageRecord, record_from_row, record_schema, records_to_table

SCHEMA = record_schema((Category(1, "person"), Category(18, "dög")))
MODEL = "f" * 32

PLAIN = DetectionRecord(1, "person", 0.75, (1.5, 2.0, 30.0, 40.0))
MASKED = DetectionRecord(18, "dög", 0.5, (0.0, 0.0, 3.0, 4.0), "0\\`o~")
POSED = DetectionRecord(1, "person", 0.25, (0.0, -0.0, 1.0, 1.0), keypoints=(1.0, 2.0, 0.5, 3.0, 4.0, 0.25))
WHOLE = DetectionRecord(1, 'a "quoted"\n\t\0 name, 人 \U0001f600', 0.125, (0.5, 0.5, 0.5, 0.5), "", (9.0, 8.0, 1.0))

NOTHING = ImageRecord("ok", None, 640, 480)
FAILED = ImageRecord("unreadable", "no image: 'x\u2028y' \U0001f600", None, None)
BROKEN = ImageRecord("failed", "RuntimeError: out of memory", 3, 4)
ONE = ImageRecord("ok", None, 640, 480, (MASKED,))
MANY = ImageRecord("ok", None, 7, 5, (PLAIN, MASKED, POSED, WHOLE))

floats = st.floats(width=32)
text = st.text(max_size=5)
objects = st.builds(
    DetectionRecord,
    st.integers(-(2**31), 2**31 - 1),
    text,
    floats,
    st.tuples(floats, floats, floats, floats),
    st.none() | text,
    st.none() | st.lists(floats, max_size=7).map(tuple),
)
sides = st.none() | st.integers(0, 2**31 - 1)
images = st.builds(ImageRecord, text, st.none() | text, sides, sides, st.lists(objects, max_size=4).map(tuple))


def table_of(records: Sequence[ImageRecord]) -> pa.Table:
    return records_to_table(range(len(records)), [*map(name, range(len(records)))], records, MODEL, SCHEMA)


def name(index: int) -> str:
    return f"s3://bücket/{index}\\ \U0001f600.jpg"


def expected_table(records: Sequence[ImageRecord]) -> pa.Table:
    """The same, one dictionary after the other."""
    rows: list[dict[str, Any]] = []
    for index, record in enumerate(records):
        found = []
        for one in record.detections:
            mask = {"size": [record.height, record.width], "counts": one.rle_counts}
            found.append(
                {
                    "category_id": one.category_id,
                    "category": one.category,
                    "score": one.score,
                    "bbox": [*one.bbox],
                    "segmentation": None if one.rle_counts is None else mask,
                    "keypoints": None if one.keypoints is None else [*one.keypoints],
                }
            )
        row = {"image_id": index, "uri": name(index), "width": record.width, "height": record.height}
        row |= {"status": record.status, "error": record.error, "detections": found, "model": MODEL}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def as_file(table: pa.Table) -> bytes:
    """What shows every bit, also of numbers that are none and of zeros with a sign."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def in_columns(records: Sequence[ImageRecord]) -> Iterator[ImageRecord]:
    """As a batch of a detector: cut out of the columns of all objects."""
    together = DetectionColumns.of([one for record in records for one in record.detections])
    parts = together.split(len(record.detections) for record in records)
    for record, part in zip(records, parts, strict=True):
        yield ImageRecord(record.status, record.error, record.width, record.height, part)


def check(records: Sequence[ImageRecord]) -> None:
    expected = expected_table(records)
    for got in (table_of(records), table_of([*in_columns(records)])):
        got.validate(full=True)
        assert got.schema.equals(expected.schema, check_metadata=True)
        assert as_file(got) == as_file(expected)


@given(st.lists(images, max_size=4))
def test_any_records(records: list[ImageRecord]) -> None:
    check(records)


@pytest.mark.parametrize("number", range(4))
def test_failed_images_in_every_place(number: int) -> None:
    for records in itertools.product((FAILED, BROKEN, NOTHING, ONE, MANY), repeat=number):
        check(records)


@pytest.mark.parametrize("objects", [(), (PLAIN,), (MASKED, MASKED), (POSED,), (PLAIN, POSED, PLAIN), (WHOLE,) * 100])
def test_columns_are_the_objects(objects: tuple[DetectionRecord, ...]) -> None:
    columns = DetectionColumns.of(objects)
    assert DetectionColumns.of(columns) is columns
    assert len(columns) == len(objects)
    assert tuple(columns) == objects
    assert columns == objects
    assert objects == columns
    assert columns == DetectionColumns.of(objects)
    assert ImageRecord("ok", None, 8, 9, columns) == ImageRecord("ok", None, 8, 9, objects)
    assert [columns[index] for index in range(len(objects))] == [*objects]
    assert columns[1:] == objects[1:]
    assert columns[::-1] == objects[::-1]
    assert pickle.loads(pickle.dumps(columns)) == objects
    with pytest.raises(IndexError):
        columns[len(objects)]


def test_columns_differ_where_an_object_does() -> None:
    columns = DetectionColumns.of((MASKED, POSED))
    assert columns != (POSED, MASKED)
    assert columns != (MASKED,)
    assert columns != DetectionColumns.of((MASKED, WHOLE))
    assert columns != [MASKED, POSED]  # as a tuple does


def test_a_batch_is_cut_into_its_images() -> None:
    parts = [*DetectionColumns.of((PLAIN, MASKED, POSED, WHOLE, POSED)).split([0, 2, 0, 1, 2, 0])]
    assert parts == [(), (PLAIN, MASKED), (), (POSED,), (WHOLE, POSED), ()]
    assert [part.keypoints.tolist() for part in parts[3:5]] == [
        [1, 2, 0.5, 3, 4, 0.25],
        [9, 8, 1, 1, 2, 0.5, 3, 4, 0.25],
    ]
    assert [*DetectionColumns.of(()).split([])] == []


def test_a_row_reads_back() -> None:
    rows = table_of([*in_columns([MANY, FAILED, NOTHING])]).to_pylist()
    assert [record_from_row(row) for row in rows] == [MANY, FAILED, NOTHING]


def test_a_table_of_columns_makes_no_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [*in_columns([MANY, FAILED, MANY])]
    expected = expected_table(records)

    def made(*_: object) -> None:
        raise AssertionError("an object was made")

    monkeypatch.setattr(DetectionRecord, "__init__", made)
    assert table_of(records).equals(expected)


def test_masks_in_a_row_say_the_size_of_their_own_image() -> None:
    wide = ImageRecord("ok", None, 100, 50, (MASKED, PLAIN, MASKED))
    (first, _, second) = table_of([*in_columns([wide, ONE])]).to_pylist()[0]["detections"]
    assert first["segmentation"] == second["segmentation"] == {"size": [50, 100], "counts": "0\\`o~"}
    rows = table_of([*in_columns([ONE, FAILED, wide])])
    masks = rows.column("detections").combine_chunks().flatten().field("segmentation")
    assert masks.field("size").to_pylist() == [[480, 640], [50, 100], None, [50, 100]]
    assert masks.is_null().to_pylist() == [False, False, True, False]
