import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from maskrcnn_core.kernels.cpu import availability
from maskrcnn_core.kernels.cpu.winograd_transforms import POSITIONS, band
from maskrcnn_core.kernels.gpu.availability import SWITCH
from maskrcnn_core.layers import winograd
from maskrcnn_core.layers.cpu_layers import BandedConv2d
from maskrcnn_core.layers.winograd import WinogradConv2d, transform_kernel


def largest_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 5),
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    channels=st.sampled_from([16, 32, 80]),
    outputs=st.sampled_from([16, 48]),
    bias=st.booleans(),
    tiles_at_once=st.sampled_from([1, 3, 7, 1000]),
)
def test_it_is_the_plain_convolution(
    images: int, height: int, width: int, channels: int, outputs: int, bias: bool, tiles_at_once: int
) -> None:
    torch.manual_seed(height * 31 + width)
    conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=bias)
    x = torch.randn(images, channels, height, width)
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_VALUES_AT_ONCE", tiles_at_once * channels)
        assert largest_error(WinogradConv2d(conv)(x), conv(x)) < 1e-4


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 256, 37, 50), (7, 256, 14, 14), (1, 192, 101, 3)])
def test_wide_maps_in_several_bands(shape: tuple[int, ...], threads: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[1], 208, 3, padding=1)
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            got = WinogradConv2d(conv)(x)
            assert largest_error(got, conv(x)) < 3e-5
            assert got.is_contiguous(memory_format=torch.channels_last)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [(9, 14), (14, 14), (15, 13), (2, 2), (1, 4)])
def test_a_shortcut_and_a_relu_follow(size: tuple[int, int]) -> None:
    torch.manual_seed(2)
    conv = nn.Conv2d(32, 32, 3, padding=1)
    x = torch.randn(3, 32, *size).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        layer, plain = WinogradConv2d(conv), conv(x)
        shortcut = torch.randn_like(plain)
        for found, wanted in (
            (layer.compute(x, relu=True), plain.relu()),
            (layer.compute(x, residual=shortcut), plain + shortcut),
            (layer.compute(x, relu=True, residual=shortcut), (plain + shortcut).relu()),
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)


def test_maps_in_half_precision_are_summed_in_single() -> None:
    torch.manual_seed(3)
    conv = nn.Conv2d(64, 64, 3, padding=1)
    x = torch.randn(2, 64, 19, 22).bfloat16().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        got = WinogradConv2d(conv, torch.bfloat16)(x)
        exact = functional.conv2d(
            x.double(), conv.weight.double(), conv.bias.double() if conv.bias is not None else None, padding=1
        )
    assert got.dtype == torch.bfloat16
    # Half of the distance to the next bfloat16, and what single precision loses.
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1)
    x = torch.zeros(1, 16, 8, 8, dtype=dtype)
    x[0, 3, 4, 4] = torch.nan
    with torch.inference_mode():
        got = WinogradConv2d(conv, dtype).compute(x, relu=True)
    assert bool(got[0, :, 3:6, 3:6].isnan().all())


def test_tiles_of_a_position_are_neighbours() -> None:
    # 14 cells are three whole tiles and a short one.
    found = band(14, 14, 0, 32)
    assert sorted(map(tuple, found.tiles[:, :3].tolist())) == [
        (image, 4 * i, 4 * j) for image in range(2) for i in range(4) for j in range(4)
    ]
    assert sum(last - first for first, last in found.used) == 2 * (3 * 6 + 4) ** 2
    for position, (first, last) in enumerate(found.used):
        outer_down, outer_across = position // 6 in (3, 4), position % 6 in (3, 4)
        needing = [
            not (outer_down and top == 12) and not (outer_across and left == 12)
            for _, top, left, _ in found.tiles.tolist()
        ]
        assert needing == [first <= place < last for place in range(32)]
    assert len(found.used) == POSITIONS


def test_few_tiles_go_another_way() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1)
    layer = WinogradConv2d(conv, few=BandedConv2d(conv))
    x = torch.randn(1, 16, 8, 8)
    with torch.inference_mode():
        assert torch.equal(layer(x), BandedConv2d(conv)(x))


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 810), (64, 513), (80, 720), (64, 91)])
def test_any_number_of_outputs(inputs: int, outputs: int) -> None:
    """RetinaNet's 9 anchors of 90 classes, SSD's 4 of 91: no multiple of what the loops take at once."""
    torch.manual_seed(3)
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    assert WinogradConv2d.suits(conv, torch.float32)
    x = torch.randn(2, inputs, 9, 14)
    with torch.inference_mode():
        layer, plain = WinogradConv2d(conv), conv(x)
        assert layer(x).shape == plain.shape
        assert largest_error(layer(x), plain) < 1e-4
        assert largest_error(layer.compute(x, relu=True, residual=plain), (plain + plain).relu()) < 1e-4


@pytest.mark.parametrize(
    "other",
    [{"stride": 2}, {"padding": 0}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "reflect"}, {"kernel_size": 5}],
)
def test_what_it_does_not_suit(other: dict[str, object]) -> None:
    geometry: dict[str, object] = {"kernel_size": 3, "padding": 1}
    assert WinogradConv2d.suits(nn.Conv2d(64, 64, **geometry), torch.float32)  # type: ignore[arg-type]
    assert not WinogradConv2d.suits(nn.Conv2d(64, 64, **geometry), torch.bfloat16)  # type: ignore[arg-type]
    assert not WinogradConv2d.suits(nn.Conv2d(72, 64, **geometry), torch.float32)  # type: ignore[arg-type]
    assert not WinogradConv2d.suits(nn.Conv2d(64, 64, **geometry | other), torch.float32)  # type: ignore[arg-type]


def test_without_numba_it_suits_nothing_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(availability.importlib.util, "find_spec", lambda _: None)  # type: ignore[attr-defined]
    availability._work.cache_clear()
    try:
        assert not WinogradConv2d.suits(nn.Conv2d(64, 64, 3, padding=1), torch.float32)
        assert "Numba is not installed" in caplog.text
    finally:
        availability._work.cache_clear()


def test_it_is_found_to_work_under_autocast() -> None:
    availability._work.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert WinogradConv2d.suits(nn.Conv2d(64, 64, 3, padding=1), torch.float32)


def test_wrong_numbers_and_a_switch_leave_the_loops_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert not availability.use_loops("winograd", lambda: False)
    assert "wrong numbers" in caplog.text
    assert availability.use_loops("winograd", lambda: True)
    monkeypatch.setenv(SWITCH, "masks,winograd")
    assert not availability.use_loops("winograd", lambda: True)


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
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    x = torch.zeros(1, 16, 9, 9)
    x[0, 0, 4, 5] = 1.0
    with torch.inference_mode():
        got = WinogradConv2d(conv)(x)
    torch.testing.assert_close(got[0, 0, 3:6, 4:7], conv.weight[0, 0].detach().flip(0, 1))
    assert float(got[0, 0, :2].abs().max()) < 1e-6


def test_transformed_kernel_shape_and_no_image() -> None:
    conv = nn.Conv2d(32, 16, 3, padding=1)
    assert transform_kernel(conv.weight.detach()).shape == (36, 16, 32)
    with torch.inference_mode():
        assert WinogradConv2d(conv)(torch.zeros(0, 32, 8, 8)).shape == (0, 16, 8, 8)
