"""Label rows of other programs, and damaged ones: read where they say the same, else one line that names file, row and
field, whoever reads them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import AnnotationError, StorageError
from maskrcnn_core.export.formats import FORMATS
from maskrcnn_core.records.labels import (
    ImageRecord,
    record_schema,
    records_to_table,
    schema_categories,
    with_category_ids,
)
from maskrcnn_core.report.settings import PicturesConfig
from pipelines.evaluation.config import EvaluateConfig, EvaluateRun
from pipelines.evaluation.run import evaluate
from pipelines.exporting.config import ExportRun
from pipelines.exporting.run import export
from pipelines.labels.files import category_names, read_labels
from pipelines.report.config import ReportRun
from pipelines.report.run import write_report
from tests.generated_labels import detection
from tests.pipelines.evaluation.test_results_files import HEIGHT, WIDTH, annotation_file

Row = dict[str, Any]
RED, BLUE = Category(1, "red"), Category(2, "blue")


def mask(x: int, y: int) -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[y : y + 24, x : x + 30] = True
    return pixels


def table(categories: tuple[Category, Category] = (RED, BLUE)) -> pa.Table:
    """Three images with both objects of `annotation_file`, and one that failed."""
    records = [
        ImageRecord(
            "ok",
            None,
            WIDTH,
            HEIGHT,
            (detection(mask(5 + n, 7 + n), 0.9, categories[0]), detection(mask(45 + n, 7 + n), 0.8, categories[1])),
        )
        for n in range(3)
    ]
    uris = [f"/d/{n}.png" for n in range(4)]
    return records_to_table(
        [1, 2, 3, 4], uris, [*records, ImageRecord("missing", "gone", None, None)], "model", record_schema(categories)
    )


def nullable(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(nullable(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(one.name, nullable(one.type)) for one in kind])
    return kind


def edited(change: Callable[[Row, Row], object]) -> pa.Table:
    """A change to the third row, and to the first of its objects; types of which anything may be null."""
    whole = table()
    rows = whole.to_pylist()
    change(rows[2], rows[2]["detections"][0])
    fields = [pa.field(one.name, nullable(one.type)) for one in whole.schema]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields, metadata=whole.schema.metadata))


def of_object(**fields: Any) -> Callable[[Row, Row], object]:
    return lambda _, found: found.update(fields)


def of_mask(**fields: Any) -> Callable[[Row, Row], object]:
    return lambda _, found: found["segmentation"].update(fields)


def of_row(**fields: Any) -> Callable[[Row, Row], object]:
    return lambda row, _: row.update(fields)


def runs(*counts: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> str:
    encoded = coco_mask.frPyObjects({"size": list(size), "counts": list(counts)}, *size)
    text: str = encoded["counts"].decode()
    return text


FAULTS = [
    (of_object(bbox=[1, 2, 3]), "box: box"),
    (of_object(bbox=[]), "box"),
    (of_object(bbox=None), "box: box None"),
    (of_object(bbox=[1, None, 3, 4]), "box"),
    (of_object(bbox=[1, 2, float("nan"), 4]), "box"),
    (of_object(bbox=[1, 2, 3e38, 3e38]), "box"),
    (of_object(keypoints=[1, 2]), "keypoints: 2 numbers"),
    (of_object(keypoints=[1, 2, float("inf")]), "keypoints"),
    (of_object(keypoints=[1, None, 2]), "keypoints"),
    (of_object(score=float("nan")), "score: nan"),
    (of_object(score=None), "score"),
    (of_object(score=float("inf")), "score: inf"),
    (of_object(category_id=None), "category: None 'red'"),
    (of_object(category=None), "category: 1 None"),
    (of_object(category_id=77, category="x"), "category: 77 'x', expected one of the 2"),
    (of_object(category="green"), "category: 1 'green'"),
    (of_mask(size=[WIDTH, HEIGHT]), "mask size"),
    (of_mask(size=[HEIGHT]), "mask size"),
    (of_mask(size=None), "mask size"),
    (of_mask(size=[None, None]), "mask size"),
    (of_mask(counts=None), "mask: no counts"),
    (of_mask(counts=""), "mask: run lengths '': no runs"),
    (of_mask(counts="0T"), "ends within a number"),
    (of_mask(counts="0ä"), "outside COCO's alphabet"),
    (of_mask(counts="0N"), "a run below 0"),
    (of_mask(counts=runs(0, 10**9)), "a run below 0, or longer than the image"),
    (of_row(width=None), "size: ok with width None"),
    (of_row(height=0), "size"),
    (of_row(width=-5), "size"),
    (of_row(status=None), "status: null"),
    (of_row(status="fine"), "status: 'fine'"),
    (of_row(status="missing"), "failed row"),
    (of_row(detections=None), "detections: null"),
    (lambda row, _: row["detections"].append(None), "score: nan"),
]


def write(folder: Path, rows: pa.Table) -> str:
    (folder / "val.json").write_text(json.dumps(annotation_file()))
    pq.write_table(rows, folder / "labels.parquet")
    return str(folder / "labels.parquet")


def readers(folder: Path, labels: str) -> dict[str, Callable[[], Any]]:
    """Everything that reads label rows."""
    truth = str(folder / "val.json")
    details = EvaluateConfig(details=True, bootstrap_samples=2)
    return {
        "evaluate": lambda: evaluate(EvaluateRun(labels, truth)),
        "details": lambda: evaluate(EvaluateRun(labels, truth, evaluate=details)),
        "pycocotools": lambda: evaluate(EvaluateRun(labels, truth, evaluate=EvaluateConfig(engine="pycocotools"))),
        "report": lambda: write_report(ReportRun(labels, str(folder / "page"), pictures=PicturesConfig(per_gallery=0))),
        **{name: partial(export, ExportRun(labels, name, str(folder / f"out-{name}"))) for name in FORMATS},
    }


@pytest.mark.parametrize(("change", "expected"), FAULTS)
def test_a_fault_of_a_row_is_one_line_for_every_reader(
    change: Callable[[Row, Row], object], expected: str, tmp_path: Path
) -> None:
    labels = write(tmp_path, edited(change))
    for read in readers(tmp_path, labels).values():
        with pytest.raises(StorageError) as caught:
            read()
        message = str(caught.value)
        assert message.startswith(f"{labels}: row number 3 (image 3): {expected}") or expected in message
        assert "row number 3 (image 3)" in message
        assert "\n" not in message
    assert not list(tmp_path.glob("out-*"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (of_row(uri=None), "uri: null"),
        (of_row(uri="/d/" + "x" * 100_000), "uri: 100003 bytes"),
    ],
)
def test_uris_matter_to_those_that_read_them(
    change: Callable[[Row, Row], object], expected: str, tmp_path: Path
) -> None:
    labels = write(tmp_path, edited(change))
    for name, read in readers(tmp_path, labels).items():
        if name in ("evaluate", "details", "pycocotools"):
            read()
        else:
            with pytest.raises(StorageError, match=expected):
                read()


@pytest.mark.parametrize(
    "change",
    [
        of_row(model=None),
        of_row(uri="/d/a\0b\n.png"),
        lambda row, _: row.update(status="missing", error=None, detections=[]),
        of_object(keypoints=[]),
        of_object(segmentation=None),
        of_object(score=7.0),
        of_object(bbox=[10, 10, -5, -5]),
        of_mask(counts=runs(HEIGHT * WIDTH)),
        of_mask(counts=runs(0, HEIGHT * WIDTH)),
    ],
)
def test_what_can_be_read_is(change: Callable[[Row, Row], object], tmp_path: Path) -> None:
    for read in readers(tmp_path, write(tmp_path, edited(change))).values():
        read()


def with_column(name: str, column: pa.Array) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: rows.set_column(rows.schema.get_field_index(name), name, column)


def with_metadata(key: bytes, value: bytes) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: rows.replace_schema_metadata({**rows.schema.metadata, key: value})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (with_column("detections", pa.array(["a", "b", "c", "d"])), "column 'detections' is string"),
        (with_column("detections", pa.array([[1], [2], [], []])), "column 'detections' is list<"),
        (with_column("image_id", pa.array(["1", "2", "3", "x"])), "column 'image_id' is string"),
        (with_column("image_id", pa.array([1.5, 2.0, 3.0, 4.0])), "column 'image_id' is double"),
        (with_column("image_id", pa.array([1, 2, None, 4])), "row number 3: image_id: null"),
        (with_column("uri", pa.array([b"/caf\xe9", b"b", b"c", b"d"])), "Invalid UTF8"),
        (lambda rows: rows.drop_columns("detections"), "column 'detections' is missing"),
        (lambda rows: rows.drop_columns("width"), "column 'width' is missing"),
        (lambda rows: rows.append_column("status", rows.column("status")), "column 'status' stands 2 times"),
        (with_metadata(b"maskrcnn.categories", b"none"), "its metadata have b'none' as maskrcnn.categories"),
        (with_metadata(b"maskrcnn.categories", b'{"a": 1}'), "its metadata have"),
        (with_metadata(b"maskrcnn.categories", b'[{"id": "1", "name": 3}]'), "its metadata have"),
        (with_metadata(b"maskrcnn.categories", b"[" * 100_000), "its metadata have"),
        (with_metadata(b"maskrcnn.categories", b"\xff"), "its metadata have"),
        (with_metadata(b"maskrcnn.schema_version", b"\xff"), "label schema version"),
        (with_metadata(b"maskrcnn.record", b"proposals"), "holds proposals"),
    ],
)
def test_a_fault_of_a_file_is_one_line(change: Callable[[pa.Table], pa.Table], expected: str, tmp_path: Path) -> None:
    labels = write(tmp_path, change(table()))
    chosen = readers(tmp_path, labels)
    for name in ("coco", "report", *(("evaluate",) if "uri" not in expected and "UTF8" not in expected else ())):
        with pytest.raises(StorageError) as caught:
            chosen[name]()
        assert expected in str(caught.value)
        assert labels in str(caught.value)
        assert "\n" not in str(caught.value)


def test_other_types_that_say_the_same(tmp_path: Path) -> None:
    """As pandas and Polars write: large text and lists, doubles, other orders, no keypoints, no metadata."""
    inner = pa.struct(
        [
            ("bbox", pa.list_(pa.float64(), 4)),
            ("score", pa.float64()),
            ("category", pa.large_string()),
            ("category_id", pa.int64()),
            ("segmentation", pa.struct([("counts", pa.large_string()), ("size", pa.large_list(pa.int64()))])),
        ]
    )
    rows = table().to_pylist()
    fields = [("status", pa.dictionary(pa.int8(), pa.string())), ("image_id", pa.float64()), ("width", pa.int64())]
    fields += [("height", pa.float64()), ("uri", pa.large_string()), ("detections", pa.large_list(inner))]
    foreign = pa.Table.from_pylist(rows, schema=pa.schema(fields))
    ours = evaluate(EvaluateRun(write(tmp_path, table()), str(tmp_path / "val.json")))
    labels = write(tmp_path, foreign)
    assert evaluate(EvaluateRun(labels, str(tmp_path / "val.json"))).scores == ours.scores
    assert category_names([labels]) == {1: "red", 2: "blue"}
    for read in readers(tmp_path, labels).values():
        read()
    (tmp_path / "other.parquet").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be read as Parquet"):
        read_labels(str(tmp_path / "other.parquet"))


def test_categories_meet_by_name(tmp_path: Path) -> None:
    """Labels that call red 2 and blue 1, and labels without a table; annotations that know one of the two."""
    swapped = table((Category(2, "red"), Category(1, "blue")))
    for rows in (swapped, swapped.replace_schema_metadata(None)):
        labels = write(tmp_path, rows.slice(0, 3))
        truth = annotation_file()
        truth["images"], truth["annotations"] = truth["images"][:3], truth["annotations"][:6]
        (tmp_path / "val.json").write_text(json.dumps(truth))
        summary = evaluate(EvaluateRun(labels, str(tmp_path / "val.json"), compare=labels))
        assert summary.scores.stats["bbox"][0] == summary.scores.stats["segm"][0] == 1
        assert "'red' is 2 in the labels and 1 in the annotations" in summary.to_json()["notes"][0]
        assert summary.comparison is not None
        assert summary.comparison.kinds["bbox"].second == 1
        truth["categories"] = [{"id": 2, "name": "blue"}]
        truth["annotations"] = [one for one in truth["annotations"] if one["category_id"] == 2]
        (tmp_path / "val.json").write_text(json.dumps(truth))
        summary = evaluate(EvaluateRun(labels, str(tmp_path / "val.json")))
        assert summary.scores.stats["bbox"][0] == 1
        assert summary.scores.unknown_categories == {"red": 3}
        truth["categories"] = [{"id": 2, "name": "green"}]
        (tmp_path / "val.json").write_text(json.dumps(truth))
        with pytest.raises(AnnotationError, match="category 2 is 'red' in the labels, 'green' in the annotations"):
            evaluate(EvaluateRun(labels, str(tmp_path / "val.json")))


def test_other_ids_in_a_part_of_a_batch() -> None:
    (batch,) = table().to_batches()
    changed = with_category_ids(batch.slice(1, 2), {1: 7})
    assert changed.column("detections").to_pylist() == [
        [{**found, "category_id": {1: 7, 2: 2}[found["category_id"]]} for found in row["detections"]]
        for row in batch.to_pylist()[1:3]
    ]
    assert changed.schema.equals(batch.schema)


def test_a_file_whose_names_are_no_text(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "l.parquet", compression="none")
    content = (tmp_path / "l.parquet").read_bytes()
    (tmp_path / "l.parquet").write_bytes(content.replace(b"status", b"stat\xe9s"))
    for name, read in readers(tmp_path, write_truth(tmp_path)).items():
        with pytest.raises(StorageError, match=r"l\.parquet: cannot be read as Parquet"):
            read()
        assert name


def write_truth(folder: Path) -> str:
    (folder / "val.json").write_text(json.dumps(annotation_file()))
    return str(folder / "l.parquet")


def test_a_name_of_half_a_character() -> None:
    schema = record_schema([RED]).with_metadata({b"maskrcnn.categories": rb'[{"id": 1, "name": "\ud800"}]'})
    assert schema_categories(schema) == (Category(1, "?"),)


def test_masks_of_too_many_runs_and_images_too_large_to_draw(tmp_path: Path) -> None:
    """A mask across an image of 46,000 x 46,000 pixels is left out where it would be drawn, a small one is drawn."""
    side = 46_000
    across = side * 20_000 + 20_000
    spread = runs(side * 5, 50, across, 50, side * side - side * 5 - across - 100, size=(side, side))
    small = runs(side * 5, 50, side - 50, 50, side * side - side * 6 - 50, size=(side, side))

    def change(row: Row, found: Row) -> None:
        row.update(width=side, height=side)
        for one, counts in zip(row["detections"], (spread, small), strict=True):
            one["segmentation"] = {"size": [side, side], "counts": counts}

    labels = write(tmp_path, edited(change))
    for name, read in readers(tmp_path, labels).items():
        if name in ("coco", "coco_dataset", "fiftyone"):
            assert read().undrawn == 0
        elif name in ("yolo", "label_studio", "cvat"):
            summary = read()
            assert (summary.undrawn, summary.objects) == (1, 5)
    long = edited(of_mask(counts="0" * ((1 << 22) + 1)))
    with pytest.raises(StorageError, match="more than 4194304 characters"):
        read_labels(write(tmp_path, long))
