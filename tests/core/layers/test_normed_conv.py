"""Convolutions with each normalisation: by plain torch, and folded for inference."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.layers.frozen_norm import FrozenAffineConv2d, fold
from maskrcnn_core.layers.normed_conv import normed_conv


@pytest.mark.parametrize("kernel", [1, 3])
def test_without_norm_is_a_plain_convolution(kernel: int) -> None:
    conv = normed_conv(3, 8, kernel, "none")
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    assert not conv.bias.any()
    assert conv(torch.zeros(2, 3, 5, 6)).shape == (2, 8, 5, 6)


def test_frozen_batch_starts_as_the_bare_convolution_and_has_constant_affine() -> None:
    conv = normed_conv(3, 8, 3, "frozen_batch")
    assert isinstance(conv, FrozenAffineConv2d)
    x = torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(conv(x), functional.conv2d(x, conv.weight, padding=1))
    assert [name for name, _ in conv.named_parameters()] == ["weight"]
    conv.scale.uniform_(0.5, 2)
    conv.shift.uniform_(-1, 1)
    norm = nn.BatchNorm2d(8, eps=0.0).eval()
    norm.weight.data, norm.bias.data = conv.scale, conv.shift
    expected = norm(functional.conv2d(x, conv.weight, padding=1))
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)
    folded = fold(nn.Sequential(conv))
    assert not any(isinstance(module, FrozenAffineConv2d) for module in folded.modules())
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "groups"), [(256, 32), (64, 32), (24, 8), (3, 1)])
def test_group_norm_of_32_groups_or_as_many_as_fit(width: int, groups: int) -> None:
    conv = normed_conv(3, width, 3, "group")
    assert isinstance(conv, nn.Sequential)
    plain = conv[0]
    assert isinstance(plain, nn.Conv2d)
    x = torch.randn(2, 3, 5, 6)
    expected = functional.group_norm(functional.conv2d(x, plain.weight, padding=1), groups)
    torch.testing.assert_close(conv(x), expected)
    assert plain.bias is None


def test_unknown_norm_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="norm: got 'batch', expected 'none', 'frozen_batch', 'sync_batch' or 'group'"
    ):
        normed_conv(3, 8, 3, "batch")
