import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.kernels.gpu.availability import without_kernels
from maskrcnn_core.layers import winograd_training
from maskrcnn_core.layers.convolve import convolve
from maskrcnn_core.layers.frozen_norm import FrozenAffineConv2d
from maskrcnn_core.layers.winograd import pays_in_training
from maskrcnn_core.layers.winograd_training import winograd_convolution


def results(
    x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool, plain: bool, open_gates: Tensor | None = None
) -> list[Tensor]:
    """Output and the three gradients; with the ReLU's gates given, as a rounding may turn one that is near zero."""
    leaves = [part.detach().clone().requires_grad_() for part in (x, weight, bias)]
    if plain:
        output = functional.conv2d(leaves[0], leaves[1], leaves[2], padding=1)
        output = output if open_gates is None else output * open_gates
    else:
        output = winograd_convolution(*leaves, relu=relu)
    wave = torch.linspace(0, 60, output.numel(), dtype=torch.float64).sin().view_as(output).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, wave)]


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 14, 14), (3, 9, 22), (1, 33, 40), (0, 8, 8)])
@pytest.mark.parametrize("relu", [False, True])
def test_gradients_are_those_of_the_plain_convolution(size: tuple[int, int, int], relu: bool) -> None:
    torch.manual_seed(sum(size))
    images, height, width = size
    x = torch.randn(images, 48, height, width).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(32, 48, 3, 3) / 20, torch.randn(32)
    found = results(x, weight, bias, relu=relu, plain=False)
    gates = found[0] > 0 if relu else None
    wanted = results(x.double(), weight.double(), bias.double(), relu=relu, plain=True, open_gates=gates)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert one.dtype == torch.float32
        scale = float(other.abs().max()) if other.numel() else 1.0
        torch.testing.assert_close(one.double(), other, rtol=0, atol=3e-5 * max(scale, 1e-6))


def test_many_tiles_are_summed_over_bands(monkeypatch: pytest.MonkeyPatch) -> None:

    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 32, 30, 26), torch.randn(32, 32, 3, 3), torch.zeros(32)
    whole = results(x, weight, bias, relu=False, plain=False)
    monkeypatch.setattr(winograd_training, "_VALUES_AT_ONCE", 32 * 11)
    for one, other in zip(results(x, weight, bias, relu=False, plain=False), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-5 * float(other.abs().max()))


def test_only_what_learns_has_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(winograd_training, "_weight_gradient")
    x = torch.randn(1, 64, 8, 8, requires_grad=True)
    winograd_convolution(x, torch.randn(64, 64, 3, 3), torch.zeros(64), relu=True).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_that_learns_goes_this_way(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Tensor, relu: bool) -> Tensor:
        calls.append(relu)
        return winograd_convolution(*arguments, relu=relu)

    monkeypatch.setattr("maskrcnn_core.layers.convolve.winograd_convolution", counted)
    torch.manual_seed(0)
    conv: nn.Module = nn.Conv2d(256, 256, 3, padding=1)
    if frozen:
        assert isinstance(conv, nn.Conv2d)
        conv = FrozenAffineConv2d(conv, torch.rand(256) + 0.5, torch.randn(256))
    x = torch.randn(2, 256, 38, 40).to(memory_format=torch.channels_last)
    residual = torch.randn(2, 256, 38, 40)
    for shortcut in (None, residual):
        gradients = []
        for switch in ("", "winograd"):
            conv.zero_grad()
            with without_kernels(switch):
                output = convolve(conv, x, relu=True, residual=shortcut)
            output.square().mean().backward()
            assert isinstance(conv.weight, Tensor)
            assert conv.weight.grad is not None
            gradients.append((output.detach(), conv.weight.grad.clone()))
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=3e-5)
    assert calls == [True, False]
    with torch.inference_mode():
        convolve(conv, x, relu=True)  # the layers of `cpu_layers` are for that
    with torch.autocast("cpu", torch.bfloat16):
        convolve(conv, x, relu=True)
    convolve(conv, x[:, :, :8, :8], relu=True)  # too few tiles
    assert len(calls) == 2


def test_where_it_pays() -> None:
    weight = torch.zeros(256, 256, 3, 3)
    assert pays_in_training((1, 256, 100, 100), weight)
    assert not pays_in_training((1, 256, 40, 40), weight)
    assert not pays_in_training((1, 64, 100, 100), weight[:64, :64])
    assert not pays_in_training((1, 3, 400, 400), weight[:, :3])
