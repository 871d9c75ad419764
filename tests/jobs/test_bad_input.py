"""What a user sees when the input is bad: a row with the reason for an image, one line for anything else.

Where each case is covered beside this file, by unit (u) or from end to end (e); what has no (e) there has it here:
    truncated JPEG, empty file, text renamed .jpg, 30000 x 30000 header, CMYK JPEG, 16-bit PNG, animated GIF, rotated
    EXIF                              tests/core/data/test_decode.py (u)
    empty and damaged files, a file that is gone, beside good ones, with a detector without weights
                                      tests/pipelines/labelling/test_run.py (u)
    no images in a folder             tests/pipelines/images/test_manifest.py (u), tests/jobs/test_label.py (e)
    a list of images that is no JSON  tests/pipelines/images/test_manifest.py (u)
    annotations that are no JSON      tests/core/data/coco/test_dataset.py (u), tests/jobs/test_evaluate.py (e)
    unknown category id, polygon of two points, box of zero width
                                      tests/core/data/coco/test_dataset.py (u)
    output that holds another run     tests/pipelines/labelling/test_run.py, tests/pipelines/training/test_run.py (u)
    missing and wrong settings        tests/jobs/test_cli.py (e)
"""

import contextlib
import io
import json
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import evaluate, label, train
from maskrcnn_core.data.generated.pictures import CATEGORIES, generate_dataset
from maskrcnn_core.inference.predictor import load_predictor
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.connection import connect
from tests.small_detector import save_small_detector

# Ray warns about settings of its own that it sets itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SMALL_YAML = """
model:
  input: {short_side: 64, long_side: 96}
  backbone: {name: efficientnet_lite0, pretrained: false, frozen_stages: 0}
  pyramid: {channels: 8}
  dense: {batch_size: 16, pre_nms_train: 20, pre_nms_test: 20, post_nms_train: 10, post_nms_test: 10}
  regions: {batch_size: 8}
  box_head: {channels: 8}
  mask_head: {channels: 4, layers: 1}
train: {steps: 1, warmup_steps: 0, batch_size: 1, learning_rate: 0.001, threads_per_worker: 1}
"""
GOOD = 3


@dataclass(frozen=True)
class Case:
    """An image of the run: its file (None = there is none), (width, height) as stored, what its row must say."""

    name: str
    content: bytes | None
    size: tuple[int, int]
    status: str = "ok"
    error: str = ""


def encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def huge_header(side: int) -> bytes:
    """A PNG of some 60 bytes that says it has side * side pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def rotated_jpeg() -> bytes:
    """48 x 32 pixels as stored, to be turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", (48, 32), (10, 200, 30)), "JPEG", exif=exif)


def bad_cases() -> tuple[Case, ...]:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8))
    jpeg = encoded(photo, "JPEG")
    frames = [Image.new("RGB", (40, 30), color) for color in ((255, 0, 0), (0, 0, 255))]
    deep = Image.fromarray(np.arange(64 * 50, dtype=np.uint16).reshape(64, 50) * 20)
    return (
        Case("truncated.jpg", jpeg[: len(jpeg) // 2], (80, 64), "unreadable", "damaged JPEG: "),
        Case("empty.jpg", b"", (80, 64), "unreadable", "the file is empty"),
        Case("text.jpg", b"not an image", (80, 64), "unreadable", "not an image: it is text"),
        Case("dot.png", encoded(Image.new("RGB", (1, 1), (9, 9, 9)), "PNG"), (1, 1)),
        Case("huge.png", huge_header(30_000), (30_000, 30_000), "too_large", "30000 x 30000 = 900,000,000 pixels"),
        Case("print.jpg", encoded(photo.convert("CMYK"), "JPEG"), (80, 64)),
        Case("deep.png", encoded(deep, "PNG"), (50, 64)),
        Case("animated.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), (40, 30)),
        Case("rotated.jpg", rotated_jpeg(), (48, 32)),
        Case("absent.jpg", None, (80, 64), "missing", "no such file"),
    )


@dataclass(frozen=True)
class Collection:
    """Three generated pictures with annotations and the images of `bad_cases`, all named by one COCO file."""

    annotations: Path
    images: Path
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Labelled:
    """What `jobs.label` made of a collection."""

    code: int
    printed: list[str]
    output: Path
    rows: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_detector(tmp_path_factory.mktemp("checkpoint") / "small")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp("collection") / "set"
    annotations = generate_dataset(folder, num_images=GOOD, image_size=(64, 96))
    document = json.loads(annotations.read_text())
    good = tuple(Case(entry["file_name"], None, (entry["width"], entry["height"])) for entry in document["images"])
    bad = bad_cases()
    for number, case in enumerate(bad, start=GOOD + 1):
        width, height = case.size
        document["images"].append({"id": number, "file_name": case.name, "width": width, "height": height})
        if case.content is not None:
            (folder / "images" / case.name).write_bytes(case.content)
    annotations.write_text(json.dumps(document))
    return Collection(annotations, folder / "images", good + bad)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connect(ClusterConfig(num_cpus=4)):
        yield


def run_label(checkpoint: Path, images: Path, output: Path) -> Labelled:
    arguments = ["--checkpoint", str(checkpoint), "--images", str(images), "--output", str(output)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = label.main([*arguments, "--label.threads_per_worker", "1"])
    table = pa.concat_tables([pq.read_table(file) for file in (output / "labels").glob("*.parquet")])
    rows = {Path(row["uri"]).name: row for row in table.sort_by("image_id").to_pylist()}
    assert len(rows) == table.num_rows
    return Labelled(code, printed.getvalue().splitlines(), output, rows)


@pytest.fixture(scope="module")
def labelled(
    cluster: None, checkpoint: Path, collection: Collection, tmp_path_factory: pytest.TempPathFactory
) -> Labelled:
    return run_label(checkpoint, collection.annotations, tmp_path_factory.mktemp("labelled") / "run")


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.parametrize(
    "number", range(GOOD + len(bad_cases())), ids=[f"good{n}" for n in range(GOOD)] + [c.name for c in bad_cases()]
)
def test_every_image_has_its_row(labelled: Labelled, collection: Collection, number: int) -> None:
    case = collection.cases[number]
    row = labelled.rows[case.name]
    assert (row["image_id"], row["uri"]) == (number + 1, str(collection.images / case.name))
    assert row["status"] == case.status
    if case.status != "ok":
        assert (row["width"], row["height"], row["detections"]) == (None, None, [])
        assert row["error"].startswith(case.error)
        assert "\n" not in row["error"]
        return
    assert row["error"] is None
    assert (row["width"], row["height"]) == case.size
    assert row["detections"]
    width, height = case.size
    for found in row["detections"]:
        x, y, w, h = found["bbox"]
        assert 0 <= x <= x + w <= width + 1e-3
        assert 0 <= y <= y + h <= height + 1e-3
        assert found["segmentation"]["size"] == [height, width]


@pytest.mark.ray
def test_bad_images_change_nothing_for_good_ones(labelled: Labelled, collection: Collection, checkpoint: Path) -> None:
    predictor = load_predictor(str(checkpoint), PredictorSettings(apply_exif=False))
    for case in collection.cases:
        if case.status == "ok":
            (alone,) = predictor.predict([(collection.images / case.name).read_bytes()])
            row = labelled.rows[case.name]
            scores = sorted(found["score"] for found in row["detections"])
            assert scores == pytest.approx(sorted(found.score for found in alone.detections), abs=1e-4), case.name


@pytest.mark.ray
def test_the_summary_counts_the_failures_and_says_where_they_are(labelled: Labelled, collection: Collection) -> None:
    failed = [case for case in collection.cases if case.status != "ok"]
    count = sum(len(row["detections"]) for row in labelled.rows.values())
    assert labelled.code == 0
    assert f"finished: 13 images (8 ok, 3 unreadable, 1 missing, 1 too_large), {count} detections" in labelled.printed
    first = labelled.printed.index("failed images:") + 1
    for line, case in zip(labelled.printed[first : first + len(failed)], failed, strict=True):
        assert line.startswith(f"  {case.status}: {collection.images / case.name}: {case.error}")
    assert labelled.printed[first + len(failed)].startswith("try them again")


@pytest.mark.ray
def test_labels_with_failures_can_be_scored(
    labelled: Labelled, collection: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["--labels", str(labelled.output), "--annotations", str(collection.annotations)]) == 0
    assert "0 of these images have no label row and 5 failed; " in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_folder_of_photos_is_turned_by_exif_and_a_coco_file_is_not(
    labelled: Labelled, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "rotated.jpg").write_bytes(rotated_jpeg())
    turned = run_label(checkpoint, tmp_path / "photos", tmp_path / "run").rows["rotated.jpg"]
    assert (turned["width"], turned["height"]) == (32, 48)
    assert turned["detections"][0]["segmentation"]["size"] == [48, 32]
    stored = labelled.rows["rotated.jpg"]
    assert (stored["width"], stored["height"]) == (48, 32)


# ---- jobs.label ------------------------------------------------------------------------------------------------------


def refusal(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a job that was refused before any work."""
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def refused_label(checkpoint: Path, images: Path, output: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    arguments = ["--checkpoint", str(checkpoint), "--images", str(images), "--output", str(output), *more]
    return refusal(label.main(arguments), capsys)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_checkpoint_cut_in_half(
    checkpoint: Path,
    collection: Collection,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    share: float,
) -> None:
    shutil.copytree(checkpoint, tmp_path / "cut")
    content = (checkpoint / name).read_bytes()
    (tmp_path / "cut" / name).write_bytes(content[: int(share * len(content))])
    line = refused_label(tmp_path / "cut", collection.annotations, tmp_path / "run", capsys)
    assert f"{tmp_path}/cut/{name}: not " in line
    assert "damaged or cut short: copy it again" in line
    assert not (tmp_path / "run").exists()  # so that the mended checkpoint may use it


def test_a_checkpoint_without_weights(
    checkpoint: Path, collection: Collection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(checkpoint / "config.json", tmp_path / "bare")
    line = refused_label(tmp_path / "bare", collection.annotations, tmp_path / "run", capsys)
    assert f"{tmp_path}/bare/model.safetensors: missing, expected the weights beside config.json" in line


def test_a_list_of_images_that_is_no_json(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.json").write_text('{"images": [')
    line = refused_label(checkpoint, tmp_path / "list.json", tmp_path / "run", capsys)
    assert f"images: '{tmp_path}/list.json' is not valid JSON" in line
    assert not (tmp_path / "run").exists()


def test_a_coco_file_far_from_its_images(
    checkpoint: Path, collection: Collection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(collection.annotations, tmp_path / "list.json")
    line = refused_label(checkpoint, tmp_path / "list.json", tmp_path / "run", capsys)
    assert f"{tmp_path}/list.json" in line
    assert "give their folder with --image_root" in line


@pytest.mark.ray
@pytest.mark.parametrize(
    ("more", "reason"),
    [(("--label.min_score", "0.9"), "min_score was None, now 0.9"), (("--label.max_pixels", "7"), "max_pixels was ")],
)
def test_an_output_that_holds_another_run(
    labelled: Labelled,
    collection: Collection,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    reason: str,
) -> None:
    line = refused_label(checkpoint, collection.annotations, labelled.output, capsys, *more)
    assert f"output: '{labelled.output}' holds another run ({reason}" in line
    assert "choose another --output" in line


# ---- jobs.train and jobs.evaluate ------------------------------------------------------------------------------------

UNKNOWN_CATEGORY: dict[str, Any] = {"category_id": 99}
TWO_POINTS: dict[str, Any] = {"segmentation": [[1, 1, 9, 9]]}
ZERO_WIDTH: dict[str, Any] = {"bbox": [4, 4, 0, 9]}  # the box of the mask is taken
NOTHING: dict[str, Any] = {"bbox": [4, 4, 0, 9], "segmentation": []}
CROWD: dict[str, Any] = {"iscrowd": 1}


def write_annotations(folder: Path, *changes: dict[str, Any]) -> list[str]:
    """Arguments for `jobs.train` on grey pictures with one door each, whose annotations have the changes."""
    (folder / "images").mkdir(parents=True)
    corners = [4, 4, 40, 4, 40, 50, 4, 50]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, change in enumerate(changes, start=1):
        Image.new("RGB", (64, 64), (90, 90, 90)).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        whole = {"bbox": [4, 4, 36, 46], "area": 1656, "iscrowd": 0, "segmentation": [corners]}
        annotations.append({"id": 10 * number, "image_id": number, "category_id": 1, **whole, **change})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (folder / "train.json").write_text(json.dumps(document))
    (folder / "small.yaml").write_text(SMALL_YAML)
    data = ["--data.train.images", f"{folder}/images", "--data.train.annotations", f"{folder}/train.json"]
    return ["--config", f"{folder}/small.yaml", "--output", f"{folder}/run", *data]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            ({}, UNKNOWN_CATEGORY),
            "annotation 20: category_id 99 is not in section 'categories'. To mend: ",
        ),
        (
            (TWO_POINTS, CROWD),
            "there is nothing to learn, every one of its 2 annotations is a crowd (iscrowd 1) or has no mask (1 object "
            "has no usable mask and is, where masks count, a region to ignore: annotation 10 of image 1: segmentation: "
            "a polygon of 4 numbers, expected x, y of at least 3 points",
        ),
        (
            (NOTHING,),
            "no usable annotation (1 annotation is left out: annotation 10 of image 1: bbox [4, 4, 0, 9], expected x, "
            "y, width, height above 0 in its image of 64 x 64 pixels",
        ),
    ],
)
def test_annotations_that_cannot_be_trained_on(
    changes: tuple[dict[str, Any], ...], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(train.main(write_annotations(tmp_path, *changes)), capsys)
    assert f"{tmp_path}/train.json: {expected}" in line
    assert not (tmp_path / "run").exists()


def test_training_annotations_that_are_no_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write_annotations(tmp_path, {})
    (tmp_path / "train.json").write_text("images: []")
    line = refusal(train.main(arguments), capsys)
    assert re.search(r"train\.json: not JSON \(.+ at character 0\)", line)
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_training_leaves_faulty_annotations_out_and_counts_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write_annotations(tmp_path, {}, TWO_POINTS, ZERO_WIDTH)
    assert train.main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    notes = [line for line in printed if line.startswith(f"note: {tmp_path}/train.json: ")]
    assert sum("1 box, area, flag or size is mended: annotation 30" in line for line in notes) == 2  # also at the end
    assert sum("1 object has no usable mask" in line for line in notes) == 2
    assert any(line.startswith("starting of 1 steps: 3 training images") for line in printed)
    assert any(line.startswith("finished: 1 steps") for line in printed)
    line = refusal(train.main([*arguments, "--train.learning_rate", "0.5"]), capsys)
    assert f"{tmp_path}/run: belongs to a run with other settings: train.learning_rate was 0.001, now 0.5; " in line
    assert "another --output" in line


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (UNKNOWN_CATEGORY, "annotation 10: category_id 99 is not in section 'categories'. To mend: "),
        ({"id": "ten"}, "annotation at position 0: id 'ten', expected a whole number"),
    ],
)
def test_annotations_that_cannot_be_scored_on(
    change: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_annotations(tmp_path, change)
    nothing = ImageRecord("ok", None, 64, 64)
    labels = records_to_table([1], ["1.png"], [nothing], "model", record_schema(CATEGORIES))
    pq.write_table(labels, tmp_path / "labels.parquet")
    arguments = ["--labels", f"{tmp_path}/labels.parquet", "--annotations", f"{tmp_path}/train.json"]
    line = refusal(evaluate.main(arguments), capsys)
    assert f"scoring {tmp_path}/labels.parquet against {tmp_path}/train.json: {expected}" in line


def test_a_box_of_zero_width_counts_as_an_object_that_was_not_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for pycocotools, which is the reference for every number."""
    write_annotations(tmp_path, {}, ZERO_WIDTH)
    found = DetectionRecord(1, "person", 0.9, (4.0, 4.0, 36.0, 46.0), None)
    records = [ImageRecord("ok", None, 64, 64, (found,)), ImageRecord("ok", None, 64, 64)]
    labels = records_to_table([1, 2], ["1.png", "2.png"], records, "model", record_schema(CATEGORIES))
    pq.write_table(labels, tmp_path / "labels.parquet")
    for engine in ("hotcoco", "pycocotools"):
        arguments = ["--labels", f"{tmp_path}/labels.parquet", "--annotations", f"{tmp_path}/train.json"]
        assert evaluate.main([*arguments, "--evaluate.engine", engine]) == 0
        shown = capsys.readouterr().out
        assert ["AR100", "0.500"] in [line.split() for line in shown.splitlines()]
        assert "1 detections and 2 annotated objects in 2 images." in shown
