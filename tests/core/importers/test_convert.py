"""Files of torch.save become checkpoint folders; unsafe, damaged and foreign files are refused by name."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.importers.convert import convert_checkpoint
from maskrcnn_core.importers.torchvision import import_torchvision
from maskrcnn_core.inference.predictor import load_predictor
from maskrcnn_core.weights.checkpoint import load_checkpoint
from maskrcnn_core.weights.source_files import read_state

CATEGORIES = (Category(18, "dog"), Category(5, "cat"))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    return MaskRCNN(backbone, num_classes=3).state_dict()


def test_a_file_becomes_a_checkpoint_that_predicts(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "model.pth")
    config = convert_checkpoint(tmp_path / "model.pth", tmp_path / "out", categories=CATEGORIES, norm_eps=1e-5)
    assert config.categories == CATEGORIES
    loaded_config, loaded = load_checkpoint(tmp_path / "out")
    assert loaded_config == config
    expected_config, expected = import_torchvision(state, norm_eps=1e-5, categories=CATEGORIES)
    assert loaded_config == expected_config
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert load_predictor(str(tmp_path / "out")).categories == CATEGORIES


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_found_in_training_checkpoints(wrapper: str | None, prefix: str, tmp_path: Path) -> None:
    weights = {f"{prefix}a.weight": torch.arange(3.0), f"{prefix}b.module.bias": torch.zeros(2)}
    torch.save(weights if wrapper is None else {"epoch": 3, wrapper: weights}, tmp_path / "file.pth")
    read = read_state(tmp_path / "file.pth")
    assert set(read) == {"a.weight", "b.module.bias"}
    assert torch.equal(read["a.weight"], torch.arange(3.0))


class Malice:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "other": Malice(tmp_path / "made")}, tmp_path / "bad.pth")
    with pytest.raises(
        CheckpointError, match=r"bad\.pth: keys such as weight are .*besides it holds other \(posix\.mkdir"
    ):
        convert_checkpoint(tmp_path / "bad.pth", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["bad.pth"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_files_cut_short(share: float, tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save({f"key{number}": torch.randn(50) for number in range(20)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.pth: (not readable|refused)"):
        read_state(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "got list, expected a state dict"),
        ({}, "got dict, expected a state dict"),
        ({"epoch": 3}, "got dict, expected a state dict"),
        (torch.zeros(3), "got Tensor, expected a state dict"),
    ],
)
def test_files_of_other_things(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=rf"other\.pth: {message}"):
        read_state(tmp_path / "other.pth")


def test_text_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"page\.pth: (not readable|refused)"):
        read_state(tmp_path / "page.pth")
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such file"):
        read_state(tmp_path / "gone.pth")


def test_keys_of_another_model(tmp_path: Path) -> None:
    torch.save({"b.weight": torch.zeros(2), "a.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: keys such as a\.weight, b\.weight are of no known"):
        convert_checkpoint(tmp_path / "other.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(
    value: float, state: dict[str, Tensor], tmp_path: Path
) -> None:
    key = "roi_heads.box_head.fc6.weight"
    changed = {name: tensor.clone() if name == key else tensor for name, tensor in state.items()}
    changed[key][3, 4] = value
    torch.save(changed, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=rf"a\.pth: torchvision checkpoint: {key} holds 1 values of \d+ that are no"
    ):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_that_only_float64_holds(state: dict[str, Tensor], tmp_path: Path) -> None:
    key = "rpn.head.cls_logits.bias"
    torch.save(state | {key: torch.full_like(state[key], 1e300, dtype=torch.float64)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"{key} holds 3 values of 3"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "out")


def test_a_norm_without_a_scale(state: dict[str, Tensor], tmp_path: Path) -> None:
    key = "backbone.body.bn1.running_var"
    torch.save(state | {key: torch.full_like(state[key], -1.0)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"trunk\.stem\.0\.scale holds 64 values of 64"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "out")


@pytest.mark.parametrize("kind", ["bool", "complex64", "int64", "uint8"])
def test_weights_of_another_kind(kind: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    key = "roi_heads.mask_predictor.mask_fcn_logits.bias"
    torch.save(state | {key: state[key].to(getattr(torch, kind))}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"{key} is a tensor of kind {kind}, expected floating-point"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "out")


def test_half_precision_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.save(half, tmp_path / "a.pth")
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "out")
    assert {tensor.dtype for tensor in load_checkpoint(tmp_path / "out")[1].values()} == {torch.float32}


def test_a_thousand_million_classes_in_four_bytes(state: dict[str, Tensor], tmp_path: Path) -> None:
    key = "roi_heads.box_predictor.cls_score.bias"
    torch.save(state | {key: torch.zeros(1).expand(10**9)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth: {key}: .* that repeats the 1 values of its storage"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "out")


def test_what_a_training_script_saves(state: dict[str, Tensor], tmp_path: Path) -> None:
    """As torchvision's references do."""
    expected = convert_checkpoint(_saved(state, tmp_path / "plain.pth"), tmp_path / "plain", categories=CATEGORIES)
    arguments = argparse.Namespace(lr=0.02, output_dir=Path("x"))
    content = {"model": state, "optimizer": {"state": {}}, "args": arguments, "epoch": 25}
    found = convert_checkpoint(_saved(content, tmp_path / "whole.pth"), tmp_path / "whole", categories=CATEGORIES)
    assert found == expected
    ours, plain = load_checkpoint(tmp_path / "whole")[1], load_checkpoint(tmp_path / "plain")[1]
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def _saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path
