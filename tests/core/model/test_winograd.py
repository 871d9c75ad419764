import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from maskrcnn_core.model.winograd import WinogradConv2d, transform_kernel


def largest_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 5),
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    channels=st.sampled_from([1, 3, 16]),
    outputs=st.sampled_from([1, 5, 16]),
    bias=st.booleans(),
)
def test_it_is_the_plain_convolution(
    images: int, height: int, width: int, channels: int, outputs: int, bias: bool
) -> None:
    torch.manual_seed(height * 31 + width)
    conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=bias)
    x = torch.randn(images, channels, height, width)
    with torch.inference_mode():
        assert largest_error(WinogradConv2d(conv)(x), conv(x)) < 1e-4


@pytest.mark.parametrize("shape", [(1, 256, 37, 50), (7, 256, 14, 14), (1, 192, 101, 3)])
def test_wide_maps_in_several_bands(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[1], 200, 3, padding=1)
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        got = WinogradConv2d(conv)(x)
        assert largest_error(got, conv(x)) < 3e-5
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_its_rounding_error_is_small() -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(256, 64, 3, padding=1, bias=False)
    x = torch.randn(1, 256, 24, 24)
    with torch.inference_mode():
        exact = functional.conv2d(x.double(), conv.weight.double(), padding=1)
        error = (WinogradConv2d(conv)(x).double() - exact).abs()
    assert float(error.mean() / exact.std()) < 5e-6


def test_kernel_of_an_impulse_response() -> None:
    # One pixel lit: the output is the kernel turned by half a turn around it.
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 5] = 1.0
    with torch.inference_mode():
        got = WinogradConv2d(conv)(x)
    torch.testing.assert_close(got[0, 0, 3:6, 4:7], conv.weight[0, 0].detach().flip(0, 1))
    assert float(got[0, 0, :2].abs().max()) < 1e-6


def test_transformed_kernel_shape_and_no_image() -> None:
    conv = nn.Conv2d(6, 4, 3, padding=1)
    assert transform_kernel(conv.weight.detach()).shape == (36, 4, 6)
    with torch.inference_mode():
        assert WinogradConv2d(conv)(torch.zeros(0, 6, 8, 8)).shape == (0, 4, 8, 8)
