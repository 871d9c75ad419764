"""The command that proposes regions: what it prints, and what it refuses before any work."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from jobs.propose import main


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures of 40 x 20, and an object that is a quarter of the first one."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 20)).save(tmp_path / name)
    images = [{"id": n, "file_name": name, "width": 40, "height": 20} for n, name in ((7, "a.png"), (9, "b.png"))]
    box = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [20, 10, 20, 10], "area": 200, "iscrowd": 0}
    document = {"images": images, "categories": [{"id": 1, "name": "thing"}], "annotations": [box]}
    (tmp_path / "val.json").write_text(json.dumps(document))
    return tmp_path


def test_proposals_are_made_and_scored(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The quarter is the fourth box of a grid of 2 x 2."""
    val, output = str(source / "val.json"), str(source / "out")
    command = ["--images", val, "--output", output, "--annotations", val, "--label.num_workers", "1"]
    command += ["--propose.method", "grid", "--propose.grid.cells", "[2]", "--propose.grid.overlaps", "[0.0]"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "finished: 2 images (2 ok), 8 proposals" in shown
    scores = [line.split() for line in shown.splitlines()]
    for name in ("AR@10", "AR@100", "AR@1000", "ARs@1000"):
        assert [name, "1.000"] in scores
    assert "8 proposals and 1 annotated objects in 2 images." in shown
    assert f"python -m jobs.verify --labels {output}" in shown
    assert main(command) == 0
    assert "already finished: 2 images (2 ok), 8 proposals; nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--images", "{0}"], "needs the contrib parts of OpenCV"),
        (["--images", "{0}", "--propose.method", "edge_boxes"], "propose.edge_boxes.model: got ''"),
        (["--images", "{0}", "--propose.method", "grid", "--annotations", "{0}/val.json"], "images: got"),
        (["--images", "{0}/val.json", "--annotations", "{0}/none.json"], "none.json: no such file"),
        (["--images", "{0}", "--propose.method", "bing"], "propose.method: got"),
        (["--images", "{0}", "--label.precision", "bfloat16"], "label.precision: got 'bfloat16', expected 'float32'"),
        (
            ["--images", "{0}", "--label.max_detections", "9"],
            "label.max_detections: got 9, expected null; propose.max_",
        ),
        (["--images", "{0}", "--label.use_gpu", "true"], "label.use_gpu: got True, expected false"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    expected: str,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if it were not installed
    given = [argument.format(source) for argument in arguments]
    assert main(["--output", str(source / "out"), *given]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (source / "out").exists()
