"""Padding "same": sizes that round up, and nothing else changed."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from timm.layers import ConvNormAct
from timm.models.inception_v3 import InceptionB, InceptionD
from torch import nn

from maskrcnn_core.layers.same_padding import PaddedReduction, pad_same


@pytest.mark.parametrize("size", [1, 7, 8, 9, 12, 13])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(1, 1, 3, stride=2),
        lambda: nn.Conv2d(1, 1, 11, stride=4, padding=2),
        lambda: nn.Conv2d(1, 1, 3, dilation=2),
        lambda: nn.Conv2d(1, 1, (1, 7)),
        lambda: nn.MaxPool2d(3, 2),
        lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
        lambda: nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        lambda: nn.MaxPool2d(2, 2),
        lambda: nn.AvgPool2d(2, 2),
        lambda: nn.AvgPool2d(3, 2),
    ],
)
def test_sizes_round_up(layer: Callable[[], nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d], size: int) -> None:
    made = layer()
    network = nn.Sequential(made)
    stride = made.stride if isinstance(made.stride, int) else made.stride[0]
    pad_same(network)
    assert network(torch.zeros(1, 1, size, size)).shape[-2:] == (math.ceil(size / stride), math.ceil(size / stride))


def test_layers_that_are_same_already_stay() -> None:
    layers = [
        nn.Conv2d(1, 1, 3, stride=2, padding=1),
        nn.Conv2d(1, 1, (1, 7), padding=(0, 3)),
        nn.Conv2d(1, 1, 3, padding="same"),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=True),
    ]
    before = [repr(layer) for layer in layers]
    pad_same(nn.Sequential(*layers))
    assert [repr(layer) for layer in layers] == before
    assert layers[-1].count_include_pad


def test_pools_by_eye() -> None:
    row = torch.tensor([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]])
    # Windows of 2 and the last one, which has 1: the average of what lies inside, not of zeros.
    average = nn.Sequential(nn.AvgPool2d((1, 2), (1, 2)))
    pad_same(average)
    assert average(row).flatten().tolist() == [1.5, 3.5, 5.0]
    # Windows of 3 centred on cells 0, 2 and 4.
    average = nn.Sequential(nn.AvgPool2d((1, 3), (1, 2)))
    pad_same(average)
    assert average(row).flatten().tolist() == [1.5, 3.0, 4.5]
    highest = nn.Sequential(nn.MaxPool2d((1, 3), (1, 2)))
    pad_same(highest)
    assert highest(-row).flatten().tolist() == [-1.0, -2.0, -4.0]


@pytest.mark.parametrize("block", [InceptionB, InceptionD])
@torch.no_grad()
def test_padded_reduction_is_the_block_inside_its_border(block: type[nn.Module]) -> None:
    torch.manual_seed(0)
    original = block(8, conv_block=partial(ConvNormAct, padding=0)).eval()
    x = torch.randn(1, 8, 33, 33)
    expected = original(x)
    reduction = PaddedReduction(original)
    pad_same(reduction)
    got = reduction(x)
    # Unpadded, windows are centred on cells 1, 3, ...; padded on 0, 2, ...: the same ones for an input one cell later.
    # What the 1 x 7 and 7 x 1 kernels see past the border spoils two cells of the result on each side.
    shifted = reduction(x[..., 1:, 1:])
    assert got.shape[-2:] == (17, 17)
    torch.testing.assert_close(shifted[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])
