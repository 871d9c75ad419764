import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.evaluate import main
from tests.core.evaluation.synthetic import annotation, annotation_file, detection, found, label_table, random_problem


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
    assert "1 label rows are of images that the annotation file does not have" in shown
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
    annotations["categories"] = [{"id": n, "name": f"kind{n:02}"} for n in range(1, 31)]
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    pq.write_table(label_table({1: found(detection(7, 0.9, [10, 10, 20, 20]))}), tmp_path / "one.parquet")
    arguments = ["--labels", str(tmp_path / "one.parquet"), "--annotations", str(tmp_path / "val.json")]
    assert main(arguments) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    kinds = [row[0] for row in rows if row and row[0].startswith("kind")]
    assert (kinds[0], len(kinds)) == ("kind07", 20)
    assert ["(10", "more)"] in rows


@pytest.mark.parametrize(
    ("labels", "annotations", "expected"),
    [
        ("{run}", "{run}/none.json", "none.json: no such file"),
        ("{run}/none", "{val}", "none: no such file or folder; expected labels written by python -m jobs.label"),
        ("{val}", "{val}", "cannot be read as Parquet"),
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
