"""Darknet's networks become ours, or are refused by name of what is otherwise."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.darknet import import_darknet
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.structures import DenseOutputs, ImageBatch
from maskrcnn_core.weights.coco_categories import COCO_CATEGORIES
from maskrcnn_core.weights.darknet_config import darknet_layers, parse_darknet_config
from maskrcnn_core.weights.darknet_weights import read_darknet_weights
from tests.core.importers import darknet_networks


def test_tiny_yolov2_has_darknets_conventions(tmp_path: Path) -> None:
    text = darknet_networks.tiny_yolov2(20, darknet_networks.TINY_ANCHORS, 64)
    config, state = import_darknet(*darknet_networks.write(tmp_path, text))
    assert (config.input.short_side, config.input.fit, config.input.scale) == (64, "letterbox", "unit")
    assert (config.backbone.name, config.pyramid.kind, config.finds) == ("darknet_tiny", "last", "detections")
    assert config.dense.anchors.priors[0][0] == pytest.approx((1.08 * 32, 1.19 * 32))
    assert (config.dense.loss.object_weight, config.dense.negative_overlap) == (5, 0.6)
    assert [category.name for category in config.categories][:2] == ["aeroplane", "bicycle"]
    detector = build_detector(config, load_pretrained=False)
    detector.load_state_dict(state)
    assert state["dense.head.logits.weight"].shape == (100, 1024, 1, 1)


def test_categories_are_cocos_or_given(tmp_path: Path) -> None:
    files = darknet_networks.write(tmp_path, darknet_networks.tiny_yolov2(80, darknet_networks.TINY_ANCHORS, 32))
    assert import_darknet(*files)[0].categories == COCO_CATEGORIES
    files = darknet_networks.write(tmp_path, darknet_networks.tiny_yolov2(2, darknet_networks.TINY_ANCHORS, 32))
    given = (Category(3, "cat"), Category(5, "dog"))
    assert import_darknet(*files, categories=given)[0].categories == given
    with pytest.raises(CheckpointError, match="it has 2 classes, got 1 categories"):
        import_darknet(*files, categories=given[:1])


def plain_outputs(folder: Path, text: str, pixels: torch.Tensor) -> torch.Tensor:
    """The vector of a YOLOv1 network, layer by layer as Darknet has it; the locally connected one cell by cell."""
    layers = darknet_layers(parse_darknet_config(text))
    tensors = read_darknet_weights(folder / "net.weights", layers)
    x = pixels
    for index, layer in enumerate(layers):
        weight = tensors.get(f"{index}.weight")
        if layer.kind == "maxpool":
            x = functional.max_pool2d(x, 2)
        if weight is None:
            continue
        bias = tensors[f"{index}.bias"]
        if layer.kind == "connected":
            x = x.flatten(1) @ weight.T + bias
        elif layer.kind == "local":
            padded, made = functional.pad(x, (1, 1, 1, 1)), torch.zeros(layer.output_size)
            for cell in range(weight.shape[0]):
                row, column = divmod(cell, layer.output_size[2])
                seen = padded[0, :, row : row + 3, column : column + 3]
                for out in range(layer.output_size[0]):
                    made[out, row, column] = (weight[cell, out] * seen).sum() + bias[out, cell]
            x = made[None]
        else:
            stride = layer.section.number("stride", 1)
            x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
            if f"{index}.scale" in tensors:
                mean, variance = (tensors[f"{index}.{part}"].view(-1, 1, 1) for part in ("mean", "variance"))
                x = (x - mean) / (variance.sqrt() + 1e-6) * tensors[f"{index}.scale"].view(-1, 1, 1)
            x = x + bias.view(-1, 1, 1)
        if layer.section.options["activation"] == "leaky":
            x = functional.leaky_relu(x, 0.1)
    return x


@pytest.mark.parametrize(("local", "boxes"), [(4, 3), (0, 2)])
def test_yolov1_by_a_plain_network(local: int, boxes: int, tmp_path: Path) -> None:
    """Both forms of the full network, at 2 x 2 cells: Darknet's with a locally connected layer, and the paper's."""
    text, side = darknet_networks.yolov1(3, boxes, local=local, side=128), 128
    config, state = import_darknet(*darknet_networks.write(tmp_path, text.replace("side=7", "side=2")))
    assert (config.dense.head.local, config.dense.head.layers) == ((local, ()) if local else (0, (64,)))
    assert config.dense.anchors.priors == (((128.0, 128.0),) * boxes,)
    detector = build_detector(config, load_pretrained=False).eval()
    detector.load_state_dict(state)
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[side, side]])
    with torch.no_grad():
        expected = plain_outputs(tmp_path, text, pixels)[0]
        features = detector.features(ImageBatch(pixels, sizes, sizes))
        outputs = detector.dense.head(features.maps)
    assert torch.allclose(as_vector(outputs, 4, boxes), expected, rtol=1e-4, atol=1e-4)
    # The first box by hand: x = (v + column) / 2, w = v^2 of the image; it is in the cell of row 0, column 0.
    cells, classes = 4, 3
    x, y, w, h = expected[cells * (classes + boxes) :][:4].tolist()
    box = detector.dense.coding.decode(outputs.deltas[0], detector.dense.grid(features)[0])[0, 0]
    wanted = [x * 64 - w * w * 64, y * 64 - h * h * 64, x * 64 + w * w * 64, y * 64 + h * h * 64]
    # The numbers of a hundred pixels, squared: what processors sum in another order shows in the third place.
    assert box.tolist() == pytest.approx(wanted, rel=1e-3, abs=1e-2)


def as_vector(outputs: DenseOutputs, cells: int, boxes: int) -> torch.Tensor:
    classes = outputs.logits[0].unflatten(1, (cells, boxes))[0, :, 0]
    return torch.cat([classes.flatten(), outputs.objectness[0][0], outputs.deltas[0][0].flatten()])


def tiny(change: Callable[[str], str] = str) -> str:
    return change(darknet_networks.tiny_yolov2(2, darknet_networks.TINY_ANCHORS, 32))


FAULTS: dict[str, tuple[str, str]] = {
    "a classifier": (darknet_networks.net(32) + darknet_networks.chain("16 P 32") + "[softmax]\n", "no detector's"),
    "another trunk": (tiny(lambda text: text.replace("filters=64", "filters=63")), "no network that is known"),
    "an activation": (tiny(lambda text: text.replace("leaky", "relu", 1)), "activation = relu, expected leaky"),
    "dilation": (tiny(lambda text: text.replace("filters=64", "filters=64\ndilation=2")), "dilation = 2"),
    "no square": (tiny(lambda text: text.replace("height=32", "height=64")), "expected a square input"),
    "sigmoid classes": (tiny(lambda text: text.replace("softmax=1", "softmax=0")), "expected softmax = 1"),
    "a tree": (tiny(lambda text: text + "tree=9k.tree\n"), "no tree"),
    "other priors": (tiny(lambda text: re.sub("anchors=.*", "anchors=1,2,3", text)), "5 boxes of 2 classes do not fit"),
    "other classes": (tiny(lambda text: text.replace("classes=2", "classes=3")), "5 boxes of 3 classes do not fit"),
    "another end": (tiny(lambda text: text.replace("[region]", "[cost]\n[region]")), "no network that is known"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_network_is_refused(fault: str, tmp_path: Path) -> None:
    text, said = FAULTS[fault]
    (tmp_path / "net.cfg").write_text(text)
    with pytest.raises(CheckpointError, match=said) as caught:
        import_darknet(tmp_path / "net.cfg", tmp_path / "net.weights")
    assert str(caught.value).isprintable()


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    cfg, weights = darknet_networks.write(tmp_path, tiny())
    content = bytearray(weights.read_bytes())
    content[20:24] = np.array([np.nan], "<f4").tobytes()
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"0\.bias holds 1 values"):
        import_darknet(cfg, weights)
