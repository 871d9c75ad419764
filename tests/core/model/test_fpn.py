"""The pyramid against its definition, by eye and against torchvision's."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from maskrcnn_core.model.fpn import FPN

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


@torch.no_grad()
def test_top_down_sum_by_eye() -> None:
    fpn = FPN((1, 1, 1, 1), 1)
    for conv in (*fpn.laterals, *fpn.outputs):
        nn.init.dirac_(conv.weight)
    p2, p3, p4, p5, p6 = fpn([torch.full((1, 1, 2**n, 2**n), 10.0**n) for n in (3, 2, 1, 0)])
    assert (p5.unique().item(), p4.unique().item(), p3.unique().item(), p2.unique().item()) == (1, 11, 111, 1111)
    assert p6.tolist() == p5.tolist()


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_kept_at_every_level(format: torch.memory_format) -> None:
    fpn = FPN(CHANNELS, 8).to(memory_format=format)
    for level in fpn([features.contiguous(memory_format=format) for features in maps()]):
        assert level.is_contiguous(memory_format=format)
