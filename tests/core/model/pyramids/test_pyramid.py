"""The four pyramids on a real trunk: what they give, and what is said where a trunk cannot have one."""

import math

import pytest
import torch
from torchvision.models.detection.backbone_utils import mobilenet_backbone

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.pyramids.fpn import FPN
from maskrcnn_core.model.pyramids.pyramid import PyramidKind, SingleMap, build_pyramid
from maskrcnn_core.model.regions.region_trunk import take_region_trunk
from maskrcnn_core.model.trunks.trunk import Trunk, build_trunk


def small(kind: PyramidKind = "fpn", name: str = "resnet18") -> Trunk:
    torch.manual_seed(0)
    trunk = build_trunk(name, pretrained=False, frozen_stages=0, dilated=kind == "dc5").eval()
    if kind == "c4":
        take_region_trunk(trunk)
    return trunk


@pytest.mark.parametrize(
    ("kind", "channels", "strides", "roi_levels"),
    [
        ("fpn", 16, (4, 8, 16, 32, 64), 4),
        ("in_network", 16, (4, 8, 16, 32, 64), 4),
        ("c4", 256, (16,), 1),
        ("dc5", 512, (16,), 1),
    ],
)
@pytest.mark.parametrize("name", ["resnet18"])
@torch.no_grad()
def test_levels(kind: PyramidKind, channels: int, strides: tuple[int, ...], roi_levels: int, name: str) -> None:
    trunk = small(kind, name)
    pyramid = build_pyramid(kind, trunk, channels=16)
    assert (pyramid.channels, pyramid.strides, pyramid.num_roi_levels) == (channels, strides, roi_levels)
    levels = pyramid(trunk(torch.zeros(2, 3, 97, 131)))
    assert [tuple(level.shape) for level in levels] == [
        (2, channels, math.ceil(97 / stride), math.ceil(131 / stride)) for stride in strides
    ]
    assert [len(level) for level in pyramid(trunk(torch.zeros(0, 3, 64, 64)))] == [0] * len(strides)


def test_single_map_is_the_trunks_own() -> None:
    trunk = small("c4")
    pyramid = build_pyramid("c4", trunk)
    maps = trunk(torch.randn(1, 3, 64, 64))
    assert pyramid(maps)[0] is maps[-1]
    assert isinstance(pyramid, SingleMap)
    assert not pyramid.state_dict()


def test_fewer_levels_and_no_extra_one() -> None:
    trunk = small()
    pyramid = build_pyramid("fpn", trunk, channels=8, levels=(3, 4), extra="none")
    assert (pyramid.strides, pyramid.num_roi_levels) == ((8, 16), 2)
    assert trunk.levels == (2, 3, 4)  # nothing would use C5
    levels = pyramid(trunk(torch.randn(1, 3, 64, 64)))
    assert [tuple(level.shape[-2:]) for level in levels] == [(8, 8), (4, 4)]
    torch.stack([level.sum() for level in levels]).sum().backward()
    missing = [key for part in (trunk, pyramid) for key, value in part.named_parameters() if value.grad is None]
    assert missing == []  # data-parallel training would wait for them


@torch.no_grad()
def test_two_maps_of_torchvisions_mobilenet() -> None:
    """Exactly the pyramid of torchvision's fasterrcnn_mobilenet_v3_large_fpn, weight by weight."""
    torch.manual_seed(0)
    theirs = mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=torch.nn.BatchNorm2d
    ).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    trunk = small(name="mobilenet_v3_large_torchvision")
    assert (trunk.channels, trunk.strides, trunk.levels) == ((160, 960), (32, 32), (4, 5))
    pyramid = build_pyramid("fpn", trunk, levels=(4, 5))
    assert isinstance(pyramid, FPN)
    assert (pyramid.strides, pyramid.num_roi_levels) == ((32, 32, 64), 1)
    body = dict(theirs.body.state_dict())
    for key in trunk.state_dict():
        path, _, part = key.removeprefix("features.").rpartition(".")
        if part == "weight" or part == "bias":
            trunk.get_submodule(f"features.{path}").get_parameter(part).copy_(body[f"{path}.{part}"])
        else:
            norm = f"{path.rpartition('.')[0]}.1"
            scale = body[f"{norm}.weight"] * (body[f"{norm}.running_var"] + 1e-5).rsqrt()
            shift = body[f"{norm}.bias"] - body[f"{norm}.running_mean"] * scale
            trunk.get_submodule(f"features.{path}").get_buffer(part).copy_(scale if part == "scale" else shift)
    for index in range(2):
        pyramid.laterals[index].load_state_dict(theirs.fpn.inner_blocks[index][0].state_dict())
        pyramid.outputs[index].load_state_dict(theirs.fpn.layer_blocks[index][0].state_dict())
    images = torch.randn(1, 3, 96, 128)
    for one, other in zip(pyramid(trunk(images)), theirs(images).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize(
    ("kind", "name", "levels", "message"),
    [
        ("fpn", "resnet18", (2, 3, 6), r"levels: got \(2, 3, 6\), expected some of \(2, 3, 4, 5\)"),
        ("fpn", "resnet18", (2, 4), "expected neighbouring levels, finest first"),
        ("in_network", "resnet18", (), "expected some of"),
        ("fpn", "mobilenet_v3_large_torchvision", (2, 3, 4, 5), r"expected some of \(4, 5\)"),
        ("c4", "mobilenet_v3_large_torchvision", (4, 5), "use mobilenet_v3_large"),
        ("dc5", "vgg11", (5,), "dc5, but the last stage of this backbone has no convolution to dilate; use c4"),
        ("dc5", "mobilenet_v3_large_torchvision", (5,), r"dc5 for a backbone with maps at strides \(32, 32\)"),
        ("dc5", "timm:resnetblur18", (5,), "dc5, but timm:resnetblur18 with its last stage dilated .*; use c4"),
    ],
)
def test_what_a_trunk_cannot_have(kind: PyramidKind, name: str, levels: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_pyramid(kind, small(kind, name), levels=levels)


@pytest.mark.parametrize("kind", ["c4", "dc5"])
def test_single_maps_need_a_trunk_made_for_them(kind: PyramidKind) -> None:
    with pytest.raises(ConfigError, match=f"{kind} needs a last map of stride 16, the backbone's has 32"):
        build_pyramid(kind, small())
