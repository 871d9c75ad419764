"""The last stage as per-region computation: cut off and applied to the whole map, it gives the map that it gave."""

import pytest
import torch

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.regions.region_trunk import RegionTrunk, take_region_trunk
from maskrcnn_core.model.trunks.trunk import build_trunk

NAMES = ("resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_lite0", "inception_v3", "timm:convnext_atto")


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_trunk_and_stage_are_the_whole_trunk(name: str) -> None:
    torch.manual_seed(0)
    trunk = build_trunk(name, pretrained=False, frozen_stages=0).eval()
    image = torch.randn(1, 3, 64, 96)
    c2, c3, c4, c5 = trunk(image)
    channels, count = trunk.channels, sum(parameter.numel() for parameter in trunk.parameters())
    stage = take_region_trunk(trunk)
    assert isinstance(stage, RegionTrunk)
    assert (trunk.channels, trunk.strides, trunk.levels) == (channels[:-1], (4, 8, 16), (2, 3, 4))
    assert (stage.channels, stage.stride) == (channels[-1], 2)
    for one, other in zip(trunk(image), (c2, c3, c4), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(stage.eval()(c4), c5)
    assert stage(c4.new_zeros(0, channels[-2], 14, 14)).shape == (0, channels[-1], 7, 7)
    assert sum(parameter.numel() for part in (trunk, stage) for parameter in part.parameters()) == count


def test_names_of_the_stage_are_those_of_its_blocks() -> None:
    trunk = build_trunk("resnet50", pretrained=False, frozen_stages=0)
    stage = take_region_trunk(trunk)
    assert stage is not None
    assert "0.conv1.weight" in stage.state_dict()
    assert "0.downsample.0.scale" in stage.state_dict()
    assert not any(key.startswith("stages.3") for key in trunk.state_dict())


def test_frozen_weights_stay_frozen() -> None:
    stage = take_region_trunk(build_trunk("resnet18", pretrained=False, frozen_stages=5))
    assert stage is not None
    assert not any(parameter.requires_grad for parameter in stage.parameters())
    trunk = build_trunk("resnet18", pretrained=False, frozen_stages=4)
    stage = take_region_trunk(trunk)
    assert stage is not None
    assert all(parameter.requires_grad for parameter in stage.parameters())
    assert not any(parameter.requires_grad for parameter in trunk.parameters())


@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_a_last_stage_without_weights_is_none(name: str) -> None:
    trunk = build_trunk(name, pretrained=False, frozen_stages=0)
    assert take_region_trunk(trunk) is None
    assert trunk.strides == (4, 8, 16)
    assert trunk(torch.zeros(1, 3, 64, 64))[-1].shape[-2:] == (4, 4)


@pytest.mark.parametrize("name", ["mobilenet_v3_large_torchvision", "timm:hrnet_w18_small"])
def test_networks_that_cannot_be_cut(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model.backbone.name: .*use mobilenet_v3_large|cannot be cut"):
        take_region_trunk(build_trunk(name, pretrained=False, frozen_stages=0))
