"""The command that finds priors: what it prints and writes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.priors import main


def annotations(folder: Path, boxes: list[list[float]], **more: Any) -> Path:
    """Two images, one upright and one lying; boxes in turns."""
    document = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 200, "height": 400},
            {"id": 2, "file_name": "b.jpg", "width": 800, "height": 400},
        ],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i, "image_id": 1 + i % 2, "category_id": 1, "bbox": box, "area": 1, "iscrowd": 0} | more
            for i, box in enumerate(boxes)
        ],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(document))
    return path


def test_sizes_in_the_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Letterboxed, both images fit their longer side: by 400 / 400 and by 400 / 800."""
    path = annotations(tmp_path, [[0, 0, 20, 40], [0, 0, 300, 200]])
    output = tmp_path / "priors.json"
    options = ["--priors.number", "2", "--priors.height", "400", "--priors.width", "400", "--priors.stride", "10"]
    assert main(["--annotations", str(path), "--output", str(output), *options]) == 0
    found = json.loads(output.read_text())
    assert found["priors"] == [[20, 40], [150, 100]]
    assert found["in_cells"] == [[2, 4], [15, 10]]
    assert (found["mean_iou"], found["objects"], found["objects_clustered"]) == (1, 2, 2)
    out = capsys.readouterr().out
    assert "2 objects\n" in out
    assert "2 priors, mean IoU with the best one 1.000; input 400 x 400 (letterbox)" in out
    assert "   150.0    100.0  15.0000,10.0000  0.500" in out
    assert "  --model.dense.anchors.priors '[[[20.00, 40.00], [150.00, 100.00]]]'" in out


def test_each_side_by_itself(tmp_path: Path) -> None:
    path = annotations(tmp_path, [[0, 0, 20, 40], [0, 0, 400, 200]])
    output = tmp_path / "priors.json"
    options = ["--priors.fit", "square", "--priors.number", "2", "--priors.height", "400", "--priors.width", "400"]
    assert main(["--annotations", str(path), "--output", str(output), *options]) == 0
    assert json.loads(output.read_text())["priors"] == [[40, 40], [200, 200]]


def test_whole_boxes_are_fractions_and_are_clipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = annotations(tmp_path, [[-10, 0, 110, 100], [400, 200, 400, 200]])
    output = tmp_path / "priors.json"
    options = ["--priors.kind", "boxes", "--priors.fit", "square", "--priors.number", "2"]
    assert main(["--annotations", str(path), "--output", str(output), *options]) == 0
    assert json.loads(output.read_text())["priors"] == [[0, 0, 0.5, 0.25], [0.5, 0.5, 1, 1]]
    assert " 0.500  0.500  1.000  1.000  0.500" in capsys.readouterr().out


def test_a_sample_of_many_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = annotations(tmp_path, [[0, 0, 10 + i, 20] for i in range(50)])
    assert main(["--annotations", str(path), "--priors.max_objects", "7", "--priors.number", "3"]) == 0
    assert "50 objects, of which 7 drawn at random" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("boxes", "more", "options", "said"),
    [
        ([], {}, [], "there is no object with a box"),
        ([[0, 0, 5, 5]], {"iscrowd": 1}, [], "there is no object with a box"),
        ([[0, 0, 5, 5]] * 9, {}, [], "expected at least as many as priors: 5"),
        ([[0, 0, 5, 5]], {}, ["--priors.number", "0"], "priors.number: got 0, expected 1 to 1,000"),
        ([[0, 0, 5, 5]], {}, ["--priors.fit", "crop"], "letterbox"),
        ([[0, 0, 5, 5]], {}, ["--output", "."], "is a folder"),
    ],
)
def test_mistakes_are_one_line(
    boxes: list[list[float]],
    more: dict[str, int],
    options: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = annotations(tmp_path, boxes, **more)
    assert main(["--annotations", str(path), *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = annotations(tmp_path, [[0, 0, 5, 5], [0, 0, 9, 5]])
    document = json.loads(path.read_text())
    document["annotations"].append({**document["annotations"][0], "id": 9, "iscrowd": 1})
    path.write_text(json.dumps(document))
    assert main(["--annotations", str(path), "--priors.number", "1"]) == 0
    assert "2 objects; 1 left out" in capsys.readouterr().out
