"""1x1 convolutions as products with a packed matrix."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from maskrcnn_core.layers import band_rule, pointwise
from maskrcnn_core.layers.pointwise import PointwiseConv2d


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(2, 8, 13, 11), (1, 8, 1, 1), (0, 8, 5, 5)])
def test_it_is_the_plain_convolution(
    threads: int, bias: bool, stride: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        conv = nn.Conv2d(8, 24, 1, stride=stride, bias=bias)
        x = torch.randn(*shape).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            packed, expected = PointwiseConv2d.pack(conv), conv(x)
            if packed is None:
                pytest.skip("this torch or processor has no such operator")
            shortcut = torch.randn_like(expected)
            for _ in range(2):  # whole, then in bands
                torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-6)
                for relu in (False, True):
                    for added in (None, shortcut):
                        found = packed.compute(x, relu=relu, residual=added)
                        wanted = expected if added is None else expected + added
                        torch.testing.assert_close(found, wanted.relu() if relu else wanted, rtol=1e-5, atol=1e-6)
                        assert found.is_contiguous(memory_format=torch.channels_last)
                for name in ("WHOLE_BYTES", "LEAST_WORK"):
                    monkeypatch.setattr(band_rule, name, 0)
                monkeypatch.setattr(pointwise, "_BAND_BYTES", 24 * 4 * 10)
    finally:
        torch.set_num_threads(before)


def test_what_is_no_plain_1x1() -> None:
    assert PointwiseConv2d.suits(nn.Conv2d(4, 6, 1, stride=2))
    for settings in ({"kernel_size": 3}, {"kernel_size": 1, "padding": 1}, {"kernel_size": 1, "groups": 2}):
        assert not PointwiseConv2d.suits(nn.Conv2d(4, 6, **settings))  # type: ignore[arg-type]


def test_callers_at_the_same_time_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(band_rule, "LEAST_WORK", 0)
    monkeypatch.setattr(pointwise, "_BAND_BYTES", 64 * 4 * 16)
    try:
        packed = PointwiseConv2d.pack(nn.Conv2d(32, 64, 1))
        if packed is None:
            pytest.skip("this torch or processor has no such operator")
        inputs = [torch.randn(2, 32, 20 + index, 17) for index in range(4)]

        def computed(x: torch.Tensor) -> torch.Tensor:
            torch.set_num_threads(2)
            with torch.inference_mode():
                return packed.compute(x, relu=True)

        alone = [computed(x) for x in inputs]
        with ThreadPoolExecutor(len(inputs)) as callers:
            for _ in range(10):
                for one, other in zip(alone, callers.map(computed, inputs), strict=True):
                    assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)
