"""The pyramid against its definition, by eye and against torchvision's."""

from collections import OrderedDict
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from maskrcnn_core.model.pyramids.fpn import FPN

SIZES = ((24, 33), (12, 17), (6, 9), (3, 5))
CHANNELS = (4, 6, 8, 10)


def maps() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, c, *size, generator=generator) for c, size in zip(CHANNELS, SIZES, strict=True)]


def test_is_torchvisions() -> None:
    torch.manual_seed(0)
    ours, theirs = FPN(CHANNELS, 5), FeaturePyramidNetwork(list(CHANNELS), 5, LastLevelMaxPool())
    for index in range(4):
        theirs.inner_blocks[index][0].load_state_dict(ours.laterals[index].state_dict())
        theirs.layer_blocks[index][0].load_state_dict(ours.outputs[index].state_dict())
    expected = list(theirs(OrderedDict(enumerate(maps()))).values())
    got = ours(maps())
    assert [tuple(level.shape[-2:]) for level in got] == [*SIZES, (2, 3)]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("extra", "below"), [("p6p7_on_p5", 5), ("p6p7_on_c5", CHANNELS[-1])])
def test_p6_and_p7_are_torchvisions(extra: Literal["p6p7_on_p5", "p6p7_on_c5"], below: int) -> None:
    torch.manual_seed(0)
    ours, theirs = FPN(CHANNELS, 5, extra=extra), FeaturePyramidNetwork(list(CHANNELS), 5, LastLevelP6P7(below, 5))
    for index in range(4):
        theirs.inner_blocks[index][0].load_state_dict(ours.laterals[index].state_dict())
        theirs.layer_blocks[index][0].load_state_dict(ours.outputs[index].state_dict())
    theirs.extra_blocks.p6.load_state_dict(ours.coarse[0].state_dict())
    theirs.extra_blocks.p7.load_state_dict(ours.coarse[1].state_dict())
    expected = list(theirs(OrderedDict(enumerate(maps()))).values())
    got = ours(maps())
    assert [tuple(level.shape[-2:]) for level in got] == [*SIZES, (2, 3), (1, 2)]
    assert (ours.strides, ours.num_roi_levels) == ((4, 8, 16, 32, 64, 128), 4)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_top_down_sum_by_eye() -> None:
    fpn = FPN((1, 1, 1, 1), 1)
    for conv in (*fpn.laterals, *fpn.outputs):
        nn.init.dirac_(conv.weight)
    p2, p3, p4, p5, p6 = fpn([torch.full((1, 1, 2**n, 2**n), 10.0**n) for n in (3, 2, 1, 0)])
    assert (p5.unique().item(), p4.unique().item(), p3.unique().item(), p2.unique().item()) == (1, 11, 111, 1111)
    assert p6.tolist() == p5.tolist()


@torch.no_grad()
def test_without_the_top_down_path_by_eye() -> None:
    pyramid = FPN((1, 1, 1, 1), 1, top_down=False)
    for conv in (*pyramid.laterals, *pyramid.outputs):
        nn.init.dirac_(conv.weight)
    levels = pyramid([torch.full((1, 1, 2**n, 2**n), 10.0**n) for n in (3, 2, 1, 0)])
    assert [level.unique().item() for level in levels] == [1000, 100, 10, 1, 1]


@pytest.mark.parametrize("top_down", [True, False])
def test_batch_norms_of_torchvisions_second_version_as_constants(top_down: bool) -> None:
    """The FPN of maskrcnn_resnet50_fpn_v2: batch norm after each convolution, which has no bias."""
    torch.manual_seed(0)
    ours = FPN(CHANNELS, 8, norm="frozen_batch", extra="none", top_down=top_down)
    theirs = FeaturePyramidNetwork(list(CHANNELS), 8, norm_layer=nn.BatchNorm2d).eval()
    blocks = (*theirs.inner_blocks, *theirs.layer_blocks)
    for (conv, norm), mine in zip(blocks, (*ours.laterals, *ours.outputs), strict=True):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        mine.load_state_dict({"weight": conv.weight, "scale": scale, "shift": norm.bias - norm.running_mean * scale})
    expected = (
        list(theirs(OrderedDict(enumerate(maps()))).values())
        if top_down
        else [layer(inner(x)) for inner, layer, x in zip(theirs.inner_blocks, theirs.layer_blocks, maps(), strict=True)]
    )
    for one, other in zip(ours(maps()), expected, strict=True):
        torch.testing.assert_close(one, other)
    assert sorted(key for key in ours.state_dict() if key.startswith("laterals.0")) == [
        "laterals.0.scale",
        "laterals.0.shift",
        "laterals.0.weight",
    ]


def test_group_norm() -> None:
    torch.manual_seed(0)
    pyramid = FPN(CHANNELS, 64, norm="group")
    assert sorted(key for key in pyramid.state_dict() if key.startswith("outputs.3")) == [
        "outputs.3.0.weight",
        "outputs.3.1.bias",
        "outputs.3.1.weight",
    ]
    with torch.no_grad():
        for level in pyramid(maps())[:-1]:
            groups = level.unflatten(1, (32, 2)).flatten(2)
            assert groups.mean(-1).abs().max() < 1e-5
            torch.testing.assert_close(groups.var(-1, correction=0), torch.ones(2, 32), rtol=1e-2, atol=1e-2)


def test_chosen_maps_and_attributes() -> None:
    torch.manual_seed(0)
    pyramid = FPN(CHANNELS[1:3], 5, strides=(8, 16), maps_used=(1, 2), extra="none")
    assert (pyramid.channels, pyramid.strides, pyramid.num_roi_levels) == (5, (8, 16), 2)
    assert [tuple(level.shape) for level in pyramid(maps())] == [(2, 5, *SIZES[1]), (2, 5, *SIZES[2])]
    standard = FPN(CHANNELS, 5)
    assert (standard.channels, standard.strides, standard.num_roi_levels) == (5, (4, 8, 16, 32, 64), 4)
    assert [len(level) for level in standard([x[:0] for x in maps()])] == [0] * 5


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_kept_at_every_level(format: torch.memory_format) -> None:
    fpn = FPN(CHANNELS, 8).to(memory_format=format)
    for level in fpn([features.contiguous(memory_format=format) for features in maps()]):
        assert level.is_contiguous(memory_format=format)
