"""Nothing is written outside of the output, whatever images and categories are called."""

import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import StorageError
from maskrcnn_core.export.formats import FORMATS, FormatName
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table
from pipelines.exporting.config import ExportConfig, ExportRun
from pipelines.exporting.run import export
from tests.core.export.test_safe_names import HOSTILE

NAMES = ["cell", "cell", "]]>&<\"'\n\r", "a\x01b", "\x1b[31m", "😀", "[/red][link=x]"]


def write_labels(folder: Path, uris: list[str], names: list[str] = NAMES) -> str:
    """A label file of one object a category in each image."""
    categories = [Category(number, name) for number, name in enumerate(names, 1)]
    found = tuple(DetectionRecord(one.id, one.name, 0.5, (4.0, 6.0, 20.0, 10.0)) for one in categories)
    record = ImageRecord("ok", None, 60, 40, found)
    ids = list(range(1, len(uris) + 1))
    rows = records_to_table(ids, uris, [record] * len(uris), "model", record_schema(categories))
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "labels.parquet")
    return str(folder / "labels.parquet")


def everything_below(folder: Path) -> set[str]:
    return {os.path.join(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)}


@pytest.mark.parametrize("root", ["/d/root/", "s3://bucket/root/", ""])
@pytest.mark.parametrize("format", FORMATS)
def test_hostile_names_stay_inside(format: FormatName, root: str, tmp_path: Path) -> None:
    hostile = [name for name in HOSTILE if "\ud800" not in name]  # no Parquet file holds it
    labels = write_labels(tmp_path / "in", [root + name for name in ("a.jpg", "sub/b.jpg", *hostile)])
    output = tmp_path / "q" / "w" / "e" / "out"
    before = everything_below(tmp_path)
    summary = export(ExportRun(labels, format, str(output)))
    made = everything_below(tmp_path) - before - {str(tmp_path / "q"), str(tmp_path / "q/w"), str(tmp_path / "q/w/e")}
    assert made
    assert all(path.startswith(str(output)) for path in made)
    assert summary.images == len(hostile) + 2
    if format == "yolo":
        listed = (output / "images.txt").read_text("utf-8").splitlines()
        assert len(set(listed)) == len(listed) == summary.images
        for line in listed:
            stem = os.path.splitext(line.removeprefix("./images/"))[0]
            assert (output / "labels" / f"{stem}.txt").is_file()
        assert summary.renamed >= len(hostile) - 2


def test_links_do_not_lead_outside(tmp_path: Path) -> None:
    """An image that is a folder, and another one that would lie in it."""
    outside = tmp_path / "outside"
    (outside / "x").mkdir(parents=True)
    labels = write_labels(tmp_path / "in", [f"{outside}/x", f"{outside}/x/b.jpg"])
    before = everything_below(outside)
    with pytest.raises(StorageError):
        export(ExportRun(labels, "yolo", str(tmp_path / "out"), ExportConfig(link_images=True)))
    assert everything_below(outside) == before
    assert not (tmp_path / "out").exists()
    labels = write_labels(
        tmp_path / "in", [f"{outside}/root/a.jpg", f"{outside}/root/../../../up.jpg", f"{outside}/root/n\0.jpg"]
    )
    with pytest.raises(StorageError, match=r"image 3, .* cannot be linked: .*null"):
        export(ExportRun(labels, "yolo", str(tmp_path / "out"), ExportConfig(link_images=True)))
    labels = write_labels(tmp_path / "in", [f"{outside}/root/a.jpg", f"{outside}/root/../../../up.jpg"])
    summary = export(ExportRun(labels, "yolo", str(tmp_path / "out"), ExportConfig(link_images=True)))
    assert summary.renamed == 1
    links = [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    assert len(links) == 2
    assert everything_below(outside) == before


@pytest.mark.parametrize("names", [["/p/a.txt", "/p/a.txt/b.jpg"], ["/p/1.jpg", "/p/1.png"], ["/p/1.jpg", "/p/1.jpg"]])
def test_names_that_fall_together_are_refused_or_told_apart(names: list[str], tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "in", names)
    run = ExportRun(labels, "yolo", str(tmp_path / "out"))
    if names[1].startswith("/p/a.txt/"):
        assert export(run).renamed == 1
        assert len(list((tmp_path / "out/labels").rglob("*.txt"))) == 2
    else:
        with pytest.raises(StorageError, match=r"two images of the labels would be written as 'labels/1\.txt'"):
            export(run)


def test_categories_of_any_name(tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "in", ["/d/a.jpg"])
    for format in ("label_studio", "cvat", "yolo", "coco_dataset", "fiftyone"):
        export(ExportRun(labels, format, str(tmp_path / format)))
    interface = ET.parse(tmp_path / "label_studio.interface.xml").getroot()
    values = [label.attrib["value"] for label in interface.iterfind("RectangleLabels/Label")]
    (task,) = json.loads((tmp_path / "label_studio").read_text("utf-8"))
    regions = [region["value"]["rectanglelabels"][0] for region in task["predictions"][0]["result"]]
    cvat = ET.parse(tmp_path / "cvat").getroot()
    known = [label.text for label in cvat.iterfind("meta/task/labels/label/name")]
    shapes = [shape.attrib["label"] for shape in cvat.iterfind("image/box")]
    names = list(yaml.safe_load((tmp_path / "yolo/data.yaml").read_text("utf-8"))["names"].values())
    assert values == regions == known == shapes == names
    assert values[:2] == ["cell (1)", "cell (2)"]
    assert values[3:5] == ["a?b", "?[31m"]
    assert len(set(values)) == len(NAMES)
    dataset = json.loads((tmp_path / "coco_dataset").read_text("utf-8"))
    assert [one["name"] for one in dataset["categories"]] == NAMES
