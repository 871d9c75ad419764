"""A detector is built only where its weights fit its configuration, which their header says."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_core.config.heads import BoxHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.inference.predictor import load_detector, load_predictor
from maskrcnn_core.model import trained
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.trained import load_trained
from maskrcnn_core.weights.checkpoint import load_checkpoint, save_checkpoint

CONFIG = ModelConfig(
    backbone=BackboneConfig(name="mobilenet_v3_small", pretrained=False),
    pyramid=PyramidConfig(channels=16),
    box_head=BoxHeadConfig(channels=16),
    mask_head=MaskHeadConfig(channels=16, layers=1),
    categories=(Category(1, "cell"),),
)


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    torch.manual_seed(0)
    return build_detector(CONFIG, load_pretrained=False)


def test_what_was_saved_is_what_is_loaded(detector: nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, detector.state_dict(), CONFIG)
    config, loaded = load_trained(tmp_path)
    assert config == CONFIG
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value) for name, value in detector.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pyramid": PyramidConfig(channels=16_384)},
            r"pyramid\.\S+ has the shape .*16.*expected .*16384.*, and \d+ more",
        ),
        ({"box_head": BoxHeadConfig(channels=16_384)}, r"regions\.box\.head\.\S+ has the shape"),
        ({"box_head": BoxHeadConfig(channels=16, layers=100)}, r"Missing key regions\.box\.head\.layers\.2\.weight"),
        ({"mask_head": MaskHeadConfig(enabled=False)}, r"Unexpected key regions\.mask\.head\.\S+"),
        (
            {"categories": tuple(Category(i, str(i)) for i in range(100_000))},
            r"regions\.box\.head\.classes\.weight has the shape",
        ),
    ],
)
def test_sizes_that_the_weights_do_not_have(
    changes: dict[str, Any], message: str, detector: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, detector.state_dict(), dataclasses.replace(CONFIG, **changes))
    monkeypatch.setattr(trained, "load_checkpoint", None)  # it is never come to
    with pytest.raises(CheckpointError, match=rf"the weights do not fit config\.json \({message}"):
        load_predictor(str(tmp_path))


def test_weights_of_whole_numbers(detector: nn.Module, tmp_path: Path) -> None:
    state = detector.state_dict()
    name = "regions.box.head.classes.bias"
    save_checkpoint(tmp_path, state | {name: torch.ones(2, dtype=torch.int64)}, CONFIG)
    with pytest.raises(CheckpointError, match=rf"{name} is a tensor of kind int64"):
        load_trained(tmp_path)


def test_names_from_outside_are_fit_for_a_terminal(detector: nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, detector.state_dict() | {"\x1b[31m\n": torch.ones(1)}, CONFIG)
    with pytest.raises(CheckpointError) as caught:
        load_trained(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("device", ["gpu", "", "cpu:x", "cuda:99", "hip", "\x1b[2J"])
def test_devices_that_are_not_there(device: str, detector: nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, detector.state_dict(), CONFIG)
    if not device:
        assert load_detector(tmp_path, device="cpu").settings.device == "cpu"
        return
    with pytest.raises(
        ValueError, match=r"device: got .*, (expected|which is not to be had here; expected) cpu"
    ) as caught:
        load_detector(tmp_path, device=device)
    assert str(caught.value).isprintable()


def test_the_digest_stands_in_the_document(detector: nn.Module, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, detector.state_dict(), CONFIG)
    load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, {name: value + 1 for name, value in detector.state_dict().items()}, CONFIG)
    load_checkpoint(tmp_path)  # written anew: the digest is that of the new weights
