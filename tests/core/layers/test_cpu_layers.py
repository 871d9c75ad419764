import pytest
import torch
from torch import nn

from maskrcnn_core.layers import band_rule, cpu_layers
from maskrcnn_core.layers.cpu_layers import BandedConv2d, PackedLinear, use_cpu_layers
from maskrcnn_core.layers.winograd import WinogradConv2d


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 7, "padding": 3, "stride": 2, "bias": False},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": (3, 1), "padding": (1, 0), "groups": 2},
        {"kernel_size": 5, "padding": 0},
        {"kernel_size": 1, "stride": 2},
    ],
)
@pytest.mark.parametrize("size", [(40, 31), (9, 7)])
def test_in_bands_it_is_the_same(
    settings: dict[str, object], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, **settings)  # type: ignore[arg-type]
    x = torch.randn(2, 4, *size).to(memory_format=torch.channels_last)
    for module, name in ((band_rule, "WHOLE_BYTES"), (cpu_layers, "_BAND_BYTES")):
        monkeypatch.setattr(module, name, 4 * 6 * size[1] * 3)  # about three rows
    with torch.inference_mode():
        banded, expected = BandedConv2d(conv), conv(x)
        torch.testing.assert_close(banded(x), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(banded.compute(x, relu=True), expected.relu(), rtol=1e-5, atol=1e-6)
        shortcut = torch.randn_like(expected)
        for relu in (False, True):
            found = banded.compute(x, relu=relu, residual=shortcut)
            wanted = expected + shortcut
            torch.testing.assert_close(found, wanted.relu() if relu else wanted, rtol=1e-5, atol=1e-6)


def test_which_convolutions_become_what() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 256, 7, stride=2, padding=3),
        nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        nn.Conv2d(256, 256, 3, padding=1, stride=2),
        nn.Conv2d(256, 48, 3, padding=1),
        nn.Conv2d(48, 64, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(64, 8, 2, stride=2),
    )
    x = torch.randn(1, 3, 60, 62)
    with torch.inference_mode():
        wanted = network(x)
        use_cpu_layers(network)
        got = network(x)
    first, pair, *others = network.children()
    kinds = [type(module) for module in (first, *pair.children(), *others)]
    assert kinds == [BandedConv2d, WinogradConv2d, nn.ReLU, BandedConv2d, BandedConv2d, nn.Conv2d, nn.ConvTranspose2d]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_packed_layer_is_the_same() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2048, 600), nn.Linear(600, 8))
    x = torch.randn(70, 2048)
    with torch.inference_mode():
        wanted = network(x)
        use_cpu_layers(network)
        torch.testing.assert_close(network(x), wanted, rtol=1e-4, atol=1e-5)
        assert network(x[:0]).shape == (0, 8)
    assert type(network[1]) is nn.Linear
    assert isinstance(network[0], PackedLinear | nn.Linear)


def test_a_torch_without_the_operators_keeps_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", missing)
    layer = nn.Linear(4, 3)
    assert PackedLinear.pack(layer) is layer
