"""Fused convolutions: their values and gradients are those of the plain layers one after the other."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from maskrcnn_core.layers import convolve as fused_conv
from maskrcnn_core.layers.convolve import POINTWISE, convolve, convolve_stem, convolve_with
from maskrcnn_core.layers.frozen_norm import FrozenAffineConv2d

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On a CPU the gradient is ours, the forward pass torch's."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "cpu":
        monkeypatch.setattr(fused_conv, "_suits", lambda x, geometry: geometry.groups == 1)
    else:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return str(request.param)


def layer(kind: str, stride: int) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3, stride=stride, padding=1, bias=kind == "plain")
    if kind == "plain":
        return conv
    return FrozenAffineConv2d(conv, torch.rand(16) + 0.5, torch.randn(16))


@pytest.mark.parametrize("kind", ["plain", "affine"])
@pytest.mark.parametrize(("relu", "with_residual"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("stride", [1, 2])
def test_values_and_gradients(kind: str, relu: bool, with_residual: bool, stride: int, device: str) -> None:
    conv = layer(kind, stride).to(device).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(1)

    def input_of(*shape: int) -> torch.Tensor:
        x = torch.randn(*shape, generator=generator).to(device).contiguous(memory_format=torch.channels_last)
        return x.requires_grad_()

    x, residual = input_of(2, 8, 10, 12), input_of(2, 16, 10 // stride, 12 // stride) if with_residual else None
    expected = conv(x)
    if residual is not None:
        expected = expected + residual
    if relu:
        expected = functional.relu(expected)
    found = convolve(conv, x, relu=relu, residual=residual)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    learnt = [x, *conv.parameters(), *([] if residual is None else [residual])]
    given = torch.randn(found.shape, generator=generator).to(device)
    gradients = (torch.autograd.grad(y, learnt, given) for y in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_half_precision_by_autocast(device: str) -> None:
    conv = layer("affine", 1).to(device).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 10, 12).to(device).contiguous(memory_format=torch.channels_last)
    if device == "cpu":
        pytest.skip("asks for the GPU's autocast")
    with torch.autocast("cuda", torch.bfloat16):
        found, expected = convolve(conv, x, relu=True), functional.relu(conv(x))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_given_weights(device: str) -> None:
    x, weight, bias = torch.randn(3, 4, 5, 5), torch.randn(6, 4, 1, 1), torch.randn(6)
    x, weight, bias = (part.to(device) for part in (x, weight, bias))
    found = convolve_with(x, weight, bias, POINTWISE, relu=True)
    torch.testing.assert_close(found, functional.relu(functional.conv2d(x, weight, bias)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(8, 16, 3, groups=2), nn.Conv2d(8, 16, 3, bias=False), nn.Conv2d(8, 16, 3, padding="same")]
)
def test_other_layers_are_called_as_they_are(conv: nn.Module, device: str) -> None:
    conv, x = conv.to(device), torch.randn(2, 8, 10, 12).to(device)
    torch.testing.assert_close(convolve(conv, x, relu=True), functional.relu(conv(x)))


@pytest.mark.parametrize("size", [(32, 46), (33, 40)])
def test_stem(size: tuple[int, int], device: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
    layer = FrozenAffineConv2d(conv, torch.rand(8) + 0.5, torch.randn(8)).to(device)
    x = torch.randn(2, 3, *size).to(device).contiguous(memory_format=torch.channels_last)
    found, expected = convolve_stem(layer, x), functional.relu(layer(x))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    given = torch.randn_like(expected)
    gradients = (torch.autograd.grad(y, layer.weight, given)[0] for y in (found, expected))
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
