import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest

from maskrcnn_core.data.coco.column_schema import OBJECTS
from maskrcnn_core.data.coco.columns import AnnotationColumns
from maskrcnn_core.data.coco.conversion import SCORING, Reader
from maskrcnn_core.data.coco.json_columns import columns_of_json
from maskrcnn_core.data.coco.shard_columns import columns_of_shards
from maskrcnn_core.errors import AnnotationError
from tests.core.data.coco.test_columns import SIDE, document, same


def boxes_alone(objects: int = 40) -> dict[str, Any]:
    content = document(objects=objects)
    for entry in content["annotations"]:
        for name in ("segmentation", "keypoints", "num_keypoints"):
            entry.pop(name, None)
    return content


def rows_of(entry: dict[str, Any]) -> dict[str, Any]:
    """An annotation as a row of shards has it; run lengths as text."""
    row = dict(entry)
    mask = row.pop("segmentation", None)
    if isinstance(mask, dict):
        row["counts"] = mask["counts"]
    elif mask:
        row["polygons"] = mask
    return row


def as_shards(
    content: dict[str, Any],
    rows: int = 7,
    leave_out: tuple[str, ...] = (),
    reader: Reader | None = None,
    types: Mapping[str, pa.DataType] | None = None,
) -> AnnotationColumns:
    """Read through batches of so many rows, some columns of other types."""
    others, images = types or {}, pa.Table.from_pylist(content["images"])
    for name in set(others) & set(images.column_names):
        images = images.set_column(images.column_names.index(name), name, images[name].cast(others[name]))
    entries = [rows_of(entry) for entry in content["annotations"]]
    names = list(dict.fromkeys(name for entry in entries for name in entry if name not in leave_out))
    own = {name: OBJECTS.field(name).type for name in names}
    own["bbox"] = pa.list_(pa.float64())
    schema = pa.schema([(name, others.get(name, own[name])) for name in names])
    objects = [
        batch
        for begin in range(0, len(entries), rows)
        for batch in pa.Table.from_pylist(entries[begin : begin + rows], schema).to_batches()
    ]
    cut = [images.slice(begin, 2) for begin in range(0, len(images), 2)]
    return columns_of_shards(content["categories"], cut, objects, reader or Reader(), source="file")


def from_json(content: dict[str, Any], reader: Reader | None = None) -> AnnotationColumns:
    return columns_of_json(json.dumps(content).encode(), reader or Reader(), source="file")


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_boxes_are_those_of_a_coco_file(rows: int) -> None:
    content = boxes_alone()
    assert same(as_shards(content, rows), from_json(content))


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_masks_and_keypoints_are_those_of_a_coco_file(rows: int) -> None:
    content = document(objects=40)
    content["annotations"] = [
        entry | ({"segmentation": {"size": [SIDE, SIDE], "counts": "57d?0O1"}} if number % 9 == 0 else {})
        for number, entry in enumerate(content["annotations"])
        if not isinstance(entry.get("segmentation"), dict)
    ]
    one, other = as_shards(content, rows), from_json(content)
    assert [one.entries(index) for index in range(5)] == [other.entries(index) for index in range(5)]
    assert one.info.faults.counts == other.info.faults.counts


@pytest.mark.parametrize(
    "types",
    [
        {"id": pa.uint64(), "image_id": pa.int16(), "category_id": pa.uint8(), "iscrowd": pa.int8()},
        {"id": pa.float64(), "category_id": pa.int64(), "area": pa.int32(), "iscrowd": pa.float32()},
        {"bbox": pa.list_(pa.float32(), 4), "file_name": pa.large_string(), "width": pa.float64()},
        {"bbox": pa.large_list(pa.float64()), "file_name": pa.dictionary(pa.int32(), pa.string())},
        {"file_name": pa.binary(), "counts": pa.binary(), "polygons": pa.large_list(pa.list_(pa.float64()))},
        {"counts": pa.dictionary(pa.int32(), pa.string()), "keypoints": pa.list_(pa.float32())},
    ],
)
def test_types_that_other_programs_write(types: dict[str, pa.DataType]) -> None:
    content = document(objects=40)
    for number, entry in enumerate(content["annotations"]):
        if number % 4 == 0:
            entry["segmentation"] = {"size": [SIDE, SIDE], "counts": "57d?0O1"}
    one, other = as_shards(content, types=types), as_shards(content)
    assert [one.entries(index) for index in range(5)] == [other.entries(index) for index in range(5)]
    assert one.info.faults.counts == other.info.faults.counts


def test_columns_of_nulls_have_no_values() -> None:
    content = boxes_alone()
    for entry in content["annotations"]:
        entry |= {"polygons": None, "counts": None, "keypoints": None, "num_keypoints": None}
    nothing = dict.fromkeys(("polygons", "counts", "keypoints", "num_keypoints"), pa.null())
    one, other = as_shards(content, types=nothing), from_json(boxes_alone())
    assert [one.entries(index) for index in range(5)] == [other.entries(index) for index in range(5)]
    for name in ("image_id", "category_id", "id"):
        with pytest.raises(AnnotationError, match=f"{name} None, expected"):
            as_shards(boxes_alone() | {"annotations": [entry | {name: None} for entry in content["annotations"]]})


@pytest.mark.parametrize(
    ("change", "type_", "message"),
    [
        ({"id": 1.5}, pa.float64(), "id 1.5, expected a whole number of 64 bits"),
        ({"id": 2**63}, pa.uint64(), "annotation 9223372036854775808: an id of more than 64 bits"),
        ({"category_id": 2**40}, pa.int64(), "category_id 1099511627776 is not in section 'categories'"),
        ({"image_id": float("nan")}, pa.float64(), "image_id nan, expected the whole number"),
        ({"id": "7"}, pa.string(), "column 'id' of string, expected int64"),
        ({"bbox": ["1", "2", "3", "4"]}, pa.list_(pa.string()), "column 'bbox' of list<.*string>, expected fixed_size"),
        ({"bbox": "1"}, pa.string(), "column 'bbox' of string"),
        ({"counts": 3}, pa.int64(), "column 'counts' of int64, expected string"),
        ({"polygons": "x"}, pa.string(), "column 'polygons' of string"),
    ],
)
def test_values_that_no_annotation_has(change: dict[str, Any], type_: pa.DataType, message: str) -> None:
    content = boxes_alone()
    (name,) = change
    for entry in content["annotations"] if not pa.types.is_floating(type_) else content["annotations"][5:6]:
        entry.update(change)
    if name in ("counts", "polygons"):
        content["annotations"] = [entry | change for entry in content["annotations"]]
    with pytest.raises(AnnotationError, match=message):
        as_shards(content, types={name: type_})


def test_a_flag_that_no_type_of_ours_has_costs_a_field() -> None:
    content = boxes_alone()
    content["annotations"][4]["iscrowd"] = -1
    content["annotations"][5]["iscrowd"] = 300
    one, other = as_shards(content, types={"iscrowd": pa.int64()}), from_json(content)
    assert [one.entries(index) for index in range(5)] == [other.entries(index) for index in range(5)]
    assert one.info.faults.counts == other.info.faults.counts


def test_a_column_that_is_there_twice() -> None:
    content = boxes_alone()
    images = pa.Table.from_pylist(content["images"])
    twice = images.append_column("width", images["width"])
    with pytest.raises(AnnotationError, match="shards of images: column 'width' is there 2 times, expected once"):
        columns_of_shards(content["categories"], [twice], [], Reader(), source="")


def test_odd_rows_cost_what_odd_entries_cost() -> None:
    content = boxes_alone()
    changes: list[dict[str, Any]] = [
        {"bbox": [0.0, 0.0, -1.0, 2.0]},
        {"bbox": [float("nan"), 0.0, 1.0, 2.0]},
        {"bbox": [60.0, 60.0, 50.0, 10_000.0]},
        {"area": -1.0},
        {"area": float("inf")},
        {"iscrowd": 7},
        {"image_id": 99},
        {"bbox": [1.0, 2.0, 3.0]},
        {"bbox": None},
        {"area": None},
        {"iscrowd": None},
    ]
    for number, change in enumerate(changes):
        content["annotations"][number * 3] |= change
    one, other = as_shards(content), from_json(content)
    assert [one.entries(index) for index in range(5)] == [other.entries(index) for index in range(5)]
    assert one.info.faults.counts == other.info.faults.counts
    assert one.info.faults.first["object"] == other.info.faults.first["object"]
    assert one.info.faults.first["field"] == other.info.faults.first["field"]


def test_columns_that_may_be_missing() -> None:
    content = boxes_alone(12)
    columns = as_shards(content, rows=5, leave_out=("id", "area", "iscrowd"))
    entries = [entry for index in range(5) for entry in columns.entries(index)]
    assert sorted(entry["id"] for entry in entries) == list(range(1, 13))
    assert {entry["area"] for entry in entries} == {10.5 * 12}
    assert {entry["iscrowd"] for entry in entries} == {0}
    with pytest.raises(AnnotationError, match="shards of objects: no column 'bbox'"):
        as_shards(content, leave_out=("bbox",))


def test_images_of_shards() -> None:
    content = boxes_alone()
    content["images"][1]["width"] = 0
    content["images"][3]["file_name"] = None
    assert same(as_shards(content), from_json(content))
    one, other = as_shards(content, reader=SCORING), from_json(content, SCORING)
    assert one.images.column("id").to_pylist() == other.images.column("id").to_pylist() == [0, 1, 2, 3, 4]
    assert one.info.left_out == other.info.left_out == ()
    sized = as_shards(content, reader=Reader(sizes=lambda name, by_url: (SIDE, SIDE)))
    assert sized.info.sized_by_pictures
    assert sized.sizes.tolist() == [[SIDE, SIDE]] * 4


def test_wrong_shards_are_refused() -> None:
    content = boxes_alone()
    content["images"][4]["id"] = 0
    with pytest.raises(AnnotationError, match="images 0: listed twice"):
        as_shards(content)
    content = boxes_alone()
    content["annotations"][9]["id"] = 3
    with pytest.raises(AnnotationError, match="annotation 3: duplicate id"):
        as_shards(content)
    content = boxes_alone()
    content["annotations"][9]["category_id"] = 1000
    with pytest.raises(AnnotationError, match="annotation 9: category_id 1000 is not in section 'categories'"):
        as_shards(content)
    content = boxes_alone()
    for entry in content["annotations"]:
        entry["image_id"] += 100
    with pytest.raises(AnnotationError, match="is not in section 'images', and neither is any other's"):
        as_shards(content)
    with pytest.raises(AnnotationError, match="column 'width' of string, expected int32"):
        as_shards({**boxes_alone(), "images": [{"id": 1, "file_name": "a", "width": "wide", "height": 1}]})


def test_nothing_at_all() -> None:
    content = boxes_alone(0)
    columns = columns_of_shards(
        content["categories"], [pa.Table.from_pylist(content["images"])], [], Reader(), source=""
    )
    assert len(columns) == 5
    assert not columns.objects.num_rows
