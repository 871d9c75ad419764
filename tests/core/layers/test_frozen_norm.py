"""Minor surgery: networks without their batch norms give the outputs that they gave with them."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from maskrcnn_core.layers.frozen_norm import FrozenAffine, FrozenAffineConv2d, fold, freeze_batch_norms


def with_lively_norms(network: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and affines as after training, so that dropping any of the four shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return network.eval()


def resnet18() -> nn.Module:
    return torchvision.models.resnet18()


def lite0() -> nn.Module:
    return timm.create_model("efficientnet_lite0", features_only=True, bn_eps=1e-3)


def resnet10t() -> nn.Module:
    return timm.create_model("resnet10t", features_only=True)


def outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        result = network(images)
    return [result] if isinstance(result, Tensor) else list(result)


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5


@pytest.mark.parametrize("make", [resnet18, lite0, resnet10t])
def test_outputs_stay_and_norms_go(make: Callable[[], nn.Module]) -> None:
    network = with_lively_norms(make())
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    expected = outputs(network, images)
    freeze_batch_norms(network, torch.zeros(1, 3, 64, 64))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert_same(outputs(network, images), expected)
    # In these networks every norm follows a convolution: none is left as an affine of its own.
    assert not any(isinstance(module, FrozenAffine) for module in network.modules())
    assert any(isinstance(module, FrozenAffineConv2d) for module in network.modules())
    # Nothing moves in train mode either: there are no statistics left to update.
    assert_same(outputs(network.train(), images), expected)
    network.eval()
    fold(network)
    assert not any(isinstance(module, FrozenAffineConv2d) for module in network.modules())
    assert_same(outputs(network, images), expected)


def test_affine_by_eye() -> None:
    # gamma 2, beta 1, mean 3, variance 4, no epsilon: y = (x - 3) / 2 * 2 + 1 = x - 2.
    norm = nn.BatchNorm2d(1, eps=0.0)
    norm.load_state_dict(
        {
            "weight": torch.tensor([2.0]),
            "bias": torch.tensor([1.0]),
            "running_mean": torch.tensor([3.0]),
            "running_var": torch.tensor([4.0]),
            "num_batches_tracked": torch.tensor(0),
        }
    )
    network = freeze_batch_norms(nn.Sequential(nn.ReLU(), norm), torch.zeros(1, 1, 2, 2))
    assert network(torch.tensor([[[[5.0]]]])).item() == pytest.approx(3.0)
    _, affine = network.children()
    assert isinstance(affine, FrozenAffine)  # no convolution feeds it: it stays, and changes nothing else


def test_bias_of_the_convolution_is_kept() -> None:
    torch.manual_seed(0)
    network = with_lively_norms(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)))
    images = torch.randn(1, 3, 7, 7)
    expected = outputs(network, images)
    assert_same(outputs(freeze_batch_norms(network, torch.zeros(1, 3, 8, 8)), images), expected)
    assert_same(outputs(fold(network), images), expected)


@pytest.mark.parametrize("groups", [1, 4])
def test_gradient_is_that_of_the_normalised_network(groups: int) -> None:
    torch.manual_seed(0)
    plain = with_lively_norms(
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False, groups=groups), nn.BatchNorm2d(8), nn.ReLU())
    )
    frozen = freeze_batch_norms(copy.deepcopy(plain), torch.zeros(1, 4, 8, 8))
    images = torch.randn(2, 4, 8, 8)
    for network in (plain, frozen):
        (network(images) ** 2).sum().backward()
    weight, expected = (next(network.parameters()) for network in (frozen, plain))
    torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-4, atol=1e-4)
    assert [name for name, _ in frozen.named_parameters()] == ["0.weight"]


class ShortcutAroundNorm(nn.Module):
    """The convolution's output goes into the norm and past it, as in networks that normalise first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x)


class NormOfOneConvTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.conv(self.one(self.conv(x))))


class ConvAsResultToo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv(x)
        return [x, self.norm(x)]


@pytest.mark.parametrize(
    "make",
    [
        ShortcutAroundNorm,
        NormOfOneConvTwice,
        ConvAsResultToo,
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(4)),
        lambda: timm.create_model("resnetv2_18", features_only=True),
        lambda: timm.create_model("repvgg_a0", features_only=True),
    ],
)
def test_affines_that_a_convolution_cannot_take_stay(make: Callable[[], nn.Module]) -> None:
    network = with_lively_norms(make())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = outputs(network, images)
    with torch.no_grad():  # as a caller may have it
        freeze_batch_norms(network, torch.zeros(1, 3, 64, 64))
    assert any(isinstance(module, FrozenAffine) for module in network.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert_same(outputs(network, images), expected)


def test_a_norm_without_affine_and_a_network_without_norm() -> None:
    norm = nn.BatchNorm2d(2, affine=False)
    assert norm.running_mean is not None
    norm.running_mean.fill_(1.0)
    images = torch.randn(1, 2, 3, 3)
    expected = outputs(norm.eval(), images)
    assert_same(outputs(freeze_batch_norms(nn.Sequential(norm), images), images), expected)
    network = nn.Sequential(nn.Conv2d(2, 2, 1))
    assert [type(layer) for layer in freeze_batch_norms(network, images).children()] == [nn.Conv2d]
