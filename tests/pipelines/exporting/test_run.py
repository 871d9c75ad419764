"""What is written in each format, read back: by the tool's own reader where it is installed, else by its definition."""

import contextlib
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn_core.config.person import COCO_KEYPOINTS
from maskrcnn_core.data.coco.dataset import load_coco
from maskrcnn_core.errors import ConfigError, StorageError
from maskrcnn_core.export.formats import FORMATS, FormatName
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.records.proposals import failed_proposals, proposals_to_table
from pipelines import storage
from pipelines.exporting.config import ExportConfig, ExportRun
from pipelines.exporting.run import ExportSummary, export
from tests.core.export.test_brush import unpacked
from tests.core.export.test_polygons import drawn, iou
from tests.generated_labels import CATEGORIES, failed_record, random_record, write_run

Row = dict[str, Any]
Labelled = tuple[Path, list[Row]]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """16 images in 4 files, two of them failed, at least one of the others without objects."""
    folder = tmp_path_factory.mktemp("labelled") / "run"
    records = [random_record(seed) for seed in range(14)]
    records[4:4] = [failed_record()]
    rows = write_run(folder, [*records, failed_record("missing")])
    assert any(row["status"] == "ok" and not row["detections"] for row in rows)
    return folder, rows


def run_export(labels: Path, format: FormatName, output: Path, **settings: Any) -> ExportSummary:
    return export(ExportRun(str(labels), format, str(output), ExportConfig(**settings)))


def ok(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["status"] == "ok"]


def objects(rows: list[Row]) -> list[tuple[Row, Row]]:
    return [(row, found) for row in ok(rows) for found in row["detections"]]


def mask_of(found: Row) -> np.ndarray:
    segmentation = found["segmentation"]
    return coco_mask.decode({"size": segmentation["size"], "counts": segmentation["counts"].encode()}).astype(bool)


def relative(row: Row) -> str:
    return row["uri"].removeprefix("/data/pictures/")


def test_coco_results_are_what_load_res_reads(labelled: Labelled, tmp_path: Path) -> None:
    folder, rows = labelled
    summary = run_export(folder, "coco", tmp_path / "results.json")
    run_export(folder, "coco_dataset", tmp_path / "dataset.json")
    assert (summary.images, summary.objects, summary.failed) == (14, len(objects(rows)), 2)
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO(str(tmp_path / "dataset.json")).loadRes(str(tmp_path / "results.json"))
    results = found.loadAnns(found.getAnnIds())
    assert len(results) == len(objects(rows))
    for result, (row, detection) in zip(results, objects(rows), strict=True):
        assert result["image_id"] == row["image_id"]
        assert (result["category_id"], result["score"]) == (detection["category_id"], detection["score"])
        assert result["bbox"] == detection["bbox"]
        assert result.get("keypoints") == detection["keypoints"]
        assert (found.annToMask(result) == mask_of(detection)).all()


@pytest.mark.parametrize("polygons", [False, True])
def test_the_data_set_is_read_by_coco_and_by_training(labelled: Labelled, tmp_path: Path, polygons: bool) -> None:
    folder, rows = labelled
    run_export(folder, "coco_dataset", tmp_path / "dataset.json", polygons=polygons)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "dataset.json"))
    assert coco.dataset["info"]["image_root"] == "/data/pictures"
    assert [image["file_name"] for image in coco.dataset["images"]] == [relative(row) for row in ok(rows)]
    annotations = coco.dataset["annotations"]
    assert [annotation["id"] for annotation in annotations] == list(range(1, len(objects(rows)) + 1))
    for annotation, (row, detection) in zip(annotations, objects(rows), strict=True):
        mask = mask_of(detection)
        assert annotation["image_id"] == row["image_id"]
        assert (annotation["area"], annotation["iscrowd"]) == (mask.sum(), 0)
        assert iou(coco.annToMask(annotation).astype(bool), mask) > (0.9 if polygons else 0.999)
        if detection["keypoints"]:
            found = np.array(detection["keypoints"]).reshape(-1, 3)
            written = np.array(annotation["keypoints"]).reshape(-1, 3)
            assert (written[:, 2] == np.where(found[:, 2] >= 0.05, 2, 0)).all()
            assert (written[written[:, 2] == 2, :2] == found[written[:, 2] == 2, :2]).all()
            assert annotation["num_keypoints"] == (written[:, 2] > 0).sum()
    dataset = load_coco(str(tmp_path / "dataset.json"), require_masks=True)
    assert dataset.categories == CATEGORIES
    assert dataset.keypoint_names == COCO_KEYPOINTS
    assert dataset.keypoint_categories == ("person",)
    assert [len(image.objects) for image in dataset.images] == [len(row["detections"]) for row in ok(rows)]


def test_yolo_polygons_draw_the_masks(labelled: Labelled, tmp_path: Path) -> None:
    folder, rows = labelled
    summary = run_export(folder, "yolo", tmp_path / "yolo")
    assert summary.files == (str(tmp_path / "yolo"),)
    data = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text(encoding="utf-8"))
    assert data["names"] == {0: "person", 1: "Käfer", 2: "ring & <star>"}
    listed = (tmp_path / "yolo" / data["train"]).read_text(encoding="utf-8").splitlines()
    assert listed == [f"./images/{relative(row)}" for row in ok(rows)]
    texts = sorted((tmp_path / "yolo" / "labels").rglob("*.txt"))
    assert len(texts) == len(ok(rows))  # a text for an image without objects, none for one that failed
    for row in ok(rows):
        text = tmp_path / "yolo" / "labels" / relative(row).replace(".jpg", ".txt")
        lines = text.read_text().splitlines()
        assert len(lines) == len(row["detections"])
        for line, detection in zip(lines, row["detections"], strict=True):
            number, *places = line.split()
            assert data["names"][int(number)] == detection["category"]
            points = np.array(places, float).reshape(-1, 2)
            assert len(points) >= 3
            assert points.min() >= 0
            assert points.max() <= 1
            again = drawn(points * (row["width"], row["height"]), row["height"], row["width"])
            assert iou(again, mask_of(detection)) > 0.9


def test_yolo_links_images_and_refuses_names_that_fall_together(tmp_path: Path) -> None:
    names = [str(tmp_path / "pictures" / name) for name in ("a/1.png", "b/1.png")]
    for name in names:
        Path(name).parent.mkdir(parents=True)
        Path(name).write_bytes(b"picture")
    records = [random_record(seed) for seed in range(2)]
    write_run(tmp_path / "run", records, names=names)
    run_export(tmp_path / "run", "yolo", tmp_path / "yolo", link_images=True)
    listed = (tmp_path / "yolo" / "images.txt").read_text().splitlines()
    assert [(tmp_path / "yolo" / line).read_bytes() for line in listed] == [b"picture"] * 2
    write_run(tmp_path / "same", records, names=["/p/1.png", "/p/1.jpg"])
    with pytest.raises(StorageError, match=r"two images .* 'labels/1.txt'"):
        run_export(tmp_path / "same", "yolo", tmp_path / "again")
    write_run(tmp_path / "remote", records, names=["s3://b/1.png", "s3://b/2.png"])
    with pytest.raises(StorageError, match="only files of this machine can be linked"):
        run_export(tmp_path / "remote", "yolo", tmp_path / "again", link_images=True)
    assert not (tmp_path / "again").exists()


def cvat_mask(shape: ET.Element, height: int, width: int) -> np.ndarray:
    """CVAT's own reading: runs along the rows of the shape's rectangle, background first."""
    left, top, wide, high = (int(shape.attrib[name]) for name in ("left", "top", "width", "height"))
    runs = [int(run) for run in shape.attrib["rle"].split(",")]
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(high, wide)
    whole = np.zeros((height, width), bool)
    whole[top : top + high, left : left + wide] = pixels
    return whole


@pytest.mark.parametrize("polygons", [False, True])
def test_cvat_shapes_are_the_masks(labelled: Labelled, tmp_path: Path, polygons: bool) -> None:
    folder, rows = labelled
    run_export(folder, "cvat", tmp_path / "cvat.xml", polygons=polygons)
    root = ET.parse(tmp_path / "cvat.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert [label.text for label in root.iterfind("meta/task/labels/label/name")] == [c.name for c in CATEGORIES]
    assert root.findtext("meta/task/size") == str(len(ok(rows)))
    for number, (image, row) in enumerate(zip(root.iterfind("image"), ok(rows), strict=True)):
        assert image.attrib == {
            "id": str(number),
            "name": relative(row),
            "width": str(row["width"]),
            "height": str(row["height"]),
        }
        shapes = list(image.iterfind("polygon" if polygons else "mask"))
        for shape, detection in zip(shapes, row["detections"], strict=True):
            assert shape.attrib["label"] == detection["category"]
            assert float(shape.findtext("attribute") or "nan") == pytest.approx(detection["score"], abs=1e-4)
            mask = mask_of(detection)
            if polygons:
                points = np.array([pair.split(",") for pair in shape.attrib["points"].split(";")], float)
                assert iou(drawn(points, *mask.shape), mask) > 0.9
            else:
                assert (cvat_mask(shape, *mask.shape) == mask).all()
        persons = [found for found in row["detections"] if found["keypoints"]]
        assert len(list(image.iterfind("points"))) == len(persons)


@pytest.mark.parametrize("polygons", [False, True])
def test_label_studio_tasks_have_regions_that_the_interface_knows(
    labelled: Labelled, tmp_path: Path, polygons: bool
) -> None:
    folder, rows = labelled
    prefix = "/data/local-files/?d=photos/"
    summary = run_export(folder, "label_studio", tmp_path / "tasks.json", polygons=polygons, image_prefix=prefix)
    assert summary.files == (str(tmp_path / "tasks.json"), str(tmp_path / "tasks.json.interface.xml"))
    tags = {tag.attrib["name"]: tag for tag in ET.parse(summary.files[1]).getroot()}
    for task, row in zip(json.loads((tmp_path / "tasks.json").read_text("utf-8")), ok(rows), strict=True):
        assert unquote(task["data"]["image"]) == prefix + relative(row)
        assert task["data"]["image_id"] == row["image_id"]
        (prediction,) = task["predictions"]
        scores = [found["score"] for found in row["detections"]]
        assert prediction.get("score") == (min(scores) if scores else None)
        for region in prediction["result"]:
            tag = tags[region["from_name"]]
            assert tag.tag.lower() == region["type"]
            assert tag.attrib["toName"] == region["to_name"] == "image"
            assert region["value"][region["type"]][0] in [label.attrib["value"] for label in tag]
            assert (region["original_width"], region["original_height"]) == (row["width"], row["height"])
        regions = [region for region in prediction["result"] if region["type"] != "keypointlabels"]
        for region, detection in zip(regions, row["detections"], strict=True):
            mask = mask_of(detection)
            if polygons:
                points = np.array(region["value"]["points"]) / 100 * (row["width"], row["height"])
                assert iou(drawn(points, *mask.shape), mask) > 0.9
            else:
                assert region["value"]["format"] == "rle"
                pixels = np.array(unpacked(region["value"]["rle"])).reshape(*mask.shape, 4)
                assert ((pixels[:, :, 3] > 0) == mask).all()
        keypoints = [region for region in prediction["result"] if region["type"] == "keypointlabels"]
        assert {region["parentID"] for region in keypoints} <= {region["id"] for region in regions}


def test_fiftyone_folder_says_where_each_image_lies(labelled: Labelled, tmp_path: Path) -> None:
    folder, rows = labelled
    run_export(folder, "fiftyone", tmp_path / "fiftyone")
    places = json.loads((tmp_path / "fiftyone" / "data.json").read_text("utf-8"))
    labels = json.loads((tmp_path / "fiftyone" / "labels.json").read_text("utf-8"))
    assert [places[image["file_name"]] for image in labels["images"]] == [row["uri"] for row in ok(rows)]
    assert [a["score"] for a in labels["annotations"]] == [found["score"] for _, found in objects(rows)]
    assert sorted(path.name for path in (tmp_path / "fiftyone").iterdir()) == ["data.json", "labels.json"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_run_is_an_empty_export(tmp_path: Path, format: FormatName) -> None:
    for number, records in enumerate(([], [failed_record(), failed_record()])):
        write_run(tmp_path / f"run{number}", records)
        summary = run_export(tmp_path / f"run{number}", format, tmp_path / f"{format}{number}") if records else None
    assert summary is not None
    assert (summary.images, summary.objects, summary.failed) == (0, 0, 2)
    output = tmp_path / f"{format}1"
    if format == "coco":
        assert json.loads(output.read_text()) == []
    if format == "coco_dataset":
        content = json.loads(output.read_text())
        assert (content["images"], content["annotations"]) == ([], [])
    if format == "cvat":
        assert not list(ET.parse(output).getroot().iterfind("image"))


@pytest.mark.parametrize("format", FORMATS)
def test_boxes_without_masks_and_objects_with_nothing_to_draw(tmp_path: Path, format: FormatName) -> None:
    box = DetectionRecord(3, "Käfer", 0.5, (4.0, 6.0, 20.0, 10.0))
    flat = DetectionRecord(3, "Käfer", 0.4, (4.0, 6.0, 0.0, 10.0))
    write_run(tmp_path / "run", [ImageRecord("ok", None, 40, 20, (box, flat))])
    summary = run_export(tmp_path / "run", format, tmp_path / "out")
    kept = 2 if format == "coco" else 1
    assert (summary.objects, summary.left_out) == (kept, 2 - kept)
    if format == "yolo":
        (text,) = (tmp_path / "out" / "labels").iterdir()
        assert text.read_text() == "1 0.350000 0.550000 0.500000 0.500000\n"
    if format == "cvat":
        shape = ET.parse(tmp_path / "out").getroot().find("image/box")
        assert shape is not None
        assert [shape.attrib[name] for name in ("xtl", "ytl", "xbr", "ybr")] == ["4.00", "6.00", "24.00", "16.00"]
    if format == "label_studio":
        (region,) = json.loads((tmp_path / "out").read_text())[0]["predictions"][0]["result"]
        expected = {"x": 10.0, "y": 30.0, "width": 50.0, "height": 50.0, "rotation": 0, "rectanglelabels": ["Käfer"]}
        assert region["value"] == expected
    if format == "coco_dataset":
        (annotation,) = json.loads((tmp_path / "out").read_text())["annotations"]
        assert annotation["area"] == 200
        assert "segmentation" not in annotation


def test_filters_leave_out_objects_and_keep_images(labelled: Labelled, tmp_path: Path) -> None:
    folder, rows = labelled
    summary = run_export(folder, "coco", tmp_path / "some.json", min_score=0.5, categories=("person", "Käfer"))
    wanted = [f for _, f in objects(rows) if f["score"] >= 0.5 and f["category_id"] in (1, 3)]
    assert [r["score"] for r in json.loads((tmp_path / "some.json").read_text())] == [f["score"] for f in wanted]
    assert (summary.images, summary.objects) == (14, len(wanted))
    run_export(folder, "yolo", tmp_path / "yolo", categories=("Käfer",))
    assert yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text("utf-8"))["names"] == {0: "Käfer"}
    with pytest.raises(ConfigError, match="'cat' is no category of the labels; expected some of person, Käfer"):
        run_export(folder, "coco", tmp_path / "none.json", categories=("cat",))


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_overwritten_and_a_failure_leaves_nothing(
    labelled: Labelled, tmp_path: Path, format: FormatName
) -> None:
    folder, _ = labelled
    (tmp_path / "there").write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        run_export(folder, format, tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"
    write_run(tmp_path / "torn", [random_record(seed) for seed in range(400)], rows_per_file=300, row_group_size=50)
    torn = tmp_path / "torn" / "labels" / "labels-001.parquet"
    content = bytearray(torn.read_bytes())
    content[200 : len(content) // 2] = bytes(len(content) // 2 - 200)
    torn.write_bytes(content)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(StorageError, match=r"labels-001\.parquet"):
        run_export(tmp_path / "torn", format, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_is_no_label_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file or folder"):
        run_export(tmp_path / "none", "coco", tmp_path / "out")
    table = proposals_to_table([1], ["a"], [failed_proposals("missing", "gone")], "model")
    pq.write_table(table, tmp_path / "proposals.parquet")
    with pytest.raises(StorageError, match="holds proposals"):
        run_export(tmp_path / "proposals.parquet", "coco", tmp_path / "out")
    pq.write_table(table.drop_columns("proposals").replace_schema_metadata(None), tmp_path / "other.parquet")
    with pytest.raises(StorageError, match="column 'detections' is missing"):
        run_export(tmp_path / "other.parquet", "coco", tmp_path / "out")


@pytest.mark.parametrize("format", FORMATS)
def test_a_malformed_mask_names_its_image(tmp_path: Path, format: FormatName) -> None:
    broken = DetectionRecord(1, "person", 0.5, (4.0, 6.0, 20.0, 10.0), "0T")
    write_run(tmp_path / "run", [random_record(0), ImageRecord("ok", None, 40, 20, (broken,))])
    with pytest.raises(StorageError, match=r"row number 2 \(image 101\): mask: .*jobs\.verify"):
        run_export(tmp_path / "run", format, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_s3_in_and_out(labelled: Labelled, tmp_path: Path, s3_folder: str) -> None:
    folder, _ = labelled
    for path in folder.rglob("*"):
        if path.is_file():
            uri = storage.join(s3_folder, "run", str(path.relative_to(folder)))
            storage.write_bytes_atomically(uri, path.read_bytes())
    run_export(folder, "coco", tmp_path / "local.json")
    run_export(folder, "fiftyone", tmp_path / "local")
    for format, name in (("coco", "results.json"), ("fiftyone", "fiftyone")):
        output = storage.join(s3_folder, name)
        summary = export(ExportRun(storage.join(s3_folder, "run"), format, output))  # type: ignore[arg-type]
        assert summary.files == (output,)
        with pytest.raises(StorageError, match="exists already"):
            export(ExportRun(storage.join(s3_folder, "run"), format, output))  # type: ignore[arg-type]
    assert storage.read_bytes(storage.join(s3_folder, "results.json")) == (tmp_path / "local.json").read_bytes()
    labels = storage.read_bytes(storage.join(s3_folder, "fiftyone", "labels.json"))
    assert labels == (tmp_path / "local" / "labels.json").read_bytes()
