"""The notebook-sized API: `load_detector`, images of any kind in, results out, one clear error; and the lines of
docs/labelling.md."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn_core
from maskrcnn_core import ImageResult, Predictor, PredictorSettings, load_detector
from maskrcnn_core.errors import CheckpointError, ImageError
from maskrcnn_core.weights.checkpoint import save_checkpoint
from tests.small_detector import FINDING, finding_detector

REPOSITORY = Path(__file__).resolve().parents[3]
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the page's lines expect it: a checkpoint and an image."""
    detector = finding_detector()
    folder = tmp_path_factory.mktemp("notebook")
    save_checkpoint(folder / "runs/mine/checkpoints/best", detector.state_dict(), FINDING)
    Image.fromarray(PIXELS).save(folder / "image.png")
    Image.fromarray(PIXELS).save(folder / "image.jpg")
    return folder


@pytest.fixture(scope="module")
def detector(folder: Path) -> Predictor:
    return load_detector(folder / "runs/mine/checkpoints/best", device="cpu")


def test_every_kind_of_image_gives_the_same_result(detector: Predictor, folder: Path) -> None:
    path = folder / "image.png"
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    results = [detector(source) for source in (path, str(path), path.read_bytes(), PIXELS, Image.open(path), tensor)]
    assert len(results[0]) > 0
    for result in results:
        assert isinstance(result, ImageResult)
        assert result.to_coco(5) == results[0].to_coco(5)
        assert (result.width, result.height) == (70, 48)


def test_a_result_is_what_predict_records(detector: Predictor, folder: Path) -> None:
    content = (folder / "image.png").read_bytes()
    result = detector(content)
    assert result.record == detector.predict([content])[0]
    assert result.source is content
    masks = result.masks()
    assert masks is not None
    assert masks.shape == (len(result), 48, 70)
    assert result.keypoints is None
    assert {int(label) for label in result.labels} <= {0, 1}
    assert [detector.categories[label].name for label in result.labels] == list(result.names)
    assert result.draw().size == (70, 48)


def test_a_list_gives_a_list_in_order(detector: Predictor) -> None:
    small = PIXELS[:30]
    results = detector([PIXELS, small, PIXELS])
    assert [result.height for result in results] == [48, 30, 48]
    alone = detector((small,))[0]
    assert alone.names == results[1].names
    np.testing.assert_allclose(alone.boxes, results[1].boxes, atol=0.05)
    assert detector([]) == []


def test_settings(folder: Path) -> None:
    settings = PredictorSettings(max_detections=2, device="meta")  # the argument beside it decides
    detector = load_detector(str(folder / "runs/mine/checkpoints/best"), "cpu", settings)
    assert detector.settings == PredictorSettings(max_detections=2)
    assert len(detector(PIXELS)) == 2


@pytest.mark.parametrize(
    ("image", "status", "message"),
    [
        ("/nowhere/image.jpg", "missing", r"^/nowhere/image\.jpg: no such file$"),
        (b"no image", "unreadable", r"^bytes: "),
        (PIXELS[..., 0], "unsupported", r"^ndarray: got pixels \[48, 70\] uint8, expected"),
    ],
)
def test_an_image_that_cannot_be_used_is_an_error(image: Any, status: str, message: str, detector: Predictor) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        detector(image)
    assert caught.value.status == status
    with pytest.raises(ImageError, match="^image 1 of 3, " + message.removeprefix("^")):
        detector([PIXELS, image, PIXELS])


def test_a_failure_inside_is_an_error(detector: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def detect(*arguments: object) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(detector, "detect_on_device", detect)
    with pytest.raises(ImageError, match=r"^ndarray: RuntimeError: no memory left$") as caught:
        detector(PIXELS)
    assert caught.value.status == "failed"


def test_pixels_that_are_no_image_become_a_record_in_predict(detector: Predictor) -> None:
    good = torch.from_numpy(PIXELS).permute(2, 0, 1)
    records = detector.predict([good, good.float(), good[:1], good[:, :0]])
    assert [record.status for record in records] == ["ok", "unsupported", "unsupported", "unsupported"]


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        load_detector(tmp_path / "none")


def test_the_package_names_its_api_and_loads_it_late() -> None:
    for name in maskrcnn_core.__all__:
        assert getattr(maskrcnn_core, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'load_detectr'"):
        _ = maskrcnn_core.load_detectr
    code = "import sys, maskrcnn_core.config.model; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, env=os.environ)


def test_the_lines_in_docs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs/labelling.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "load_detector" in block]
    assert len(blocks) == 1
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(blocks[0], names)
    result = names["result"]
    assert isinstance(result, ImageResult)
    assert capsys.readouterr().out == f"{result}\n"
    assert names["coco"] == result.to_coco(42)
    with Image.open(io.BytesIO((folder / "drawn.png").read_bytes())) as drawn:
        assert drawn.size == (70, 48)
