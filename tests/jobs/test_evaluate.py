import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.evaluate import main
from maskrcnn_core.records.proposals import ProposalRecord, proposals_to_table
from tests.core.evaluation.synthetic import (
    CATEGORIES,
    HEIGHT,
    WIDTH,
    annotation,
    annotation_file,
    detection,
    found,
    label_table,
    random_problem,
)
from tests.core.evaluation.test_keypoints import random_problem as random_keypoints


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A run's folder and an annotation file."""
    annotations, labels = random_problem(1)
    (tmp_path / "run" / "labels").mkdir(parents=True)
    pq.write_table(labels.slice(0, 3), tmp_path / "run/labels/part-0.parquet")
    pq.write_table(labels.slice(3), tmp_path / "run/labels/part-1.parquet")
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    return str(tmp_path / "run"), str(tmp_path / "val.json")


def test_tables_and_json(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "scores.json"
    assert main(["--labels", files[0], "--annotations", files[1], "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    numbers = json.loads(output.read_text())
    rows = [line.split() for line in shown.splitlines()]
    assert ["box", "mask"] in rows
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert numbers["names"] == names
    for name, *values in zip(names, numbers["stats"]["bbox"], numbers["stats"]["segm"], strict=True):
        assert [name, *("-" if value == -1 else f"{value:.3f}" for value in values)] in rows
    assert f"All numbers: {output}" in shown
    assert numbers["images"] == {"annotated": 8, "labelled": 6, "failed": 1, "unlabelled": 1, "unknown": 1}
    assert "1 of these images have no label row and 1 failed" in shown
    assert "1 images with labels are not among those of the annotation file" in shown
    assert [category["name"] for category in numbers["per_category"]] == ["cat", "bird", "dog", "never annotated"]
    assert numbers["per_category"][3]["segm"] == -1
    assert numbers["source"]["models"] == ["model"]


def test_undefined_numbers_are_a_dash_and_missing_masks_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = annotation_file([annotation(1, 1, 2, [10, 10, 20, 20])], [1])
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    labels = label_table({1: found(detection(2, 0.9, [10, 10, 20, 20], masked=False))})
    pq.write_table(labels, tmp_path / "one.parquet")
    assert main(["--labels", str(tmp_path / "one.parquet"), "--annotations", str(tmp_path / "val.json")]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    assert ["AP", "1.000"] in rows
    assert ["APl", "-"] in rows
    assert "Mask not scored: 1 detections have no mask." in shown


def test_many_categories_show_best_and_worst(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = annotation_file([annotation(n, 1, n, [10, 10, 20, 20]) for n in range(1, 31)], [1])
    names = {category.id: category.name for category in CATEGORIES}
    annotations["categories"] = [{"id": n, "name": names.get(n, f"kind{n:02}")} for n in range(1, 31)]
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    pq.write_table(label_table({1: found(detection(7, 0.9, [10, 10, 20, 20]))}), tmp_path / "one.parquet")
    arguments = ["--labels", str(tmp_path / "one.parquet"), "--annotations", str(tmp_path / "val.json")]
    assert main(arguments) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    kinds = [row[0] for row in rows if row and (row[0].startswith("kind") or row[0] in ("cat", "dog", "bird", "never"))]
    assert (kinds[0], len(kinds)) == ("dog", 20)
    assert ["(10", "more)"] in rows


@pytest.mark.parametrize(
    ("labels", "annotations", "expected"),
    [
        ("{run}", "{run}/none.json", "none.json: no such file"),
        ("{run}/none", "{val}", "none: no such file or folder; expected labels written by python -m jobs.label"),
        ("{val}", "{val}", "val.json: holds an object; expected a list, as COCO's results format has it"),
        ("{run}", "{run}/labels/part-0.parquet", "not JSON"),
    ],
)
def test_a_wrong_file_is_one_line(
    labels: str, annotations: str, expected: str, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    labels, annotations = (text.format(run=files[0], val=files[1]) for text in (labels, annotations))
    assert main(["--labels", labels, "--annotations", annotations]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1


def test_proposals_get_their_average_recall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of the four objects are found exactly, one with IoU 0.6 (thresholds 0.50, 0.55 and 0.60), one not at all."""
    boxes = [[0, 0, 20, 20], [30, 0, 20, 20], [60, 0, 20, 20], [0, 40, 20, 20]]
    annotations = annotation_file([annotation(n, 1, 2, box) for n, box in enumerate(boxes, 1)], [1, 2])
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    proposed = np.array([*boxes[:2], [60, 0, 20, 12], [100, 100, 10, 10]], np.float32)
    record = ProposalRecord("ok", None, WIDTH, HEIGHT, proposed, np.array([0.9, 0.8, 0.7, 0.6], np.float32))
    pq.write_table(proposals_to_table([1], ["1.jpg"], [record], "model"), tmp_path / "proposals.parquet")
    output = str(tmp_path / "recall.json")
    arguments = ["--labels", str(tmp_path / "proposals.parquet"), "--annotations", str(tmp_path / "val.json")]
    assert main([*arguments, "--output", output]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    assert ["AR@100", "0.575"] in rows  # (2 + 0.3) / 4
    assert ["AR@1000", "0.575"] in rows
    assert ["ARs@1000", "0.575"] in rows
    assert ["ARl@1000", "-"] in rows
    assert "4 proposals and 4 annotated objects in 2 images." in shown
    assert "1 of these images have no label row" in shown
    assert json.loads(Path(output).read_text())["stats"]["proposals"] == pytest.approx([0.575] * 4 + [-1.0] * 2)


def test_keypoints_have_a_table_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, labels = random_keypoints(2)
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    pq.write_table(labels, tmp_path / "one.parquet")
    output = tmp_path / "scores.json"
    arguments = ["--labels", str(tmp_path / "one.parquet"), "--annotations", str(tmp_path / "val.json")]
    assert main([*arguments, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    numbers = json.loads(output.read_text())
    names = ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]
    assert numbers["keypoint_names"] == names
    assert "COCO keypoint scores" in shown
    for name, value in zip(names, numbers["stats"]["keypoints"], strict=True):
        assert [name, f"{value:.3f}"] in rows
    cat = next(category for category in numbers["per_category"] if category["name"] == "cat")
    assert cat["keypoints"] == numbers["stats"]["keypoints"][0]
    assert ["cat", f"{cat['bbox']:.3f}", f"{cat['keypoints']:.3f}", str(cat["annotations"])] in rows
    dog = next(category for category in numbers["per_category"] if category["name"] == "dog")
    assert ["dog", f"{dog['bbox']:.3f}", "-", str(dog["annotations"])] in rows


def test_labels_without_keypoints_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, _ = random_keypoints(2)
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    pq.write_table(label_table({1: found(detection(2, 0.9, [10, 10, 20, 20]))}), tmp_path / "one.parquet")
    assert main(["--labels", str(tmp_path / "one.parquet"), "--annotations", str(tmp_path / "val.json")]) == 0
    assert "Keypoints not scored: 1 detections of categories with keypoints have none." in capsys.readouterr().out
