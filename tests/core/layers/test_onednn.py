"""oneDNN's convolution gives what torch's does."""

import pytest
import torch
from torch.nn import functional

from maskrcnn_core.layers import onednn
from maskrcnn_core.layers.onednn import convolution


@pytest.fixture(params=[True, False], ids=["operator", "without"])
def operator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(onednn, "_has_operator", lambda dtype: False)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups"), [(1, 1, 0, 1), (1, 2, 0, 1), (3, 1, 1, 1), (3, 2, 1, 4), (1, 1, 0, 4)]
)
def test_the_same_as_torchs(
    kernel: int,
    stride: int,
    padding: int,
    groups: int,
    relu: bool,
    dtype: torch.dtype,
    tolerance: float,
    threads: int,
    operator: None,
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 20, 31, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(48, 32 // groups, kernel, kernel, generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype)
    expected = functional.conv2d(x.float(), weight.float(), bias.float(), stride, padding, 1, groups)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            found = convolution(x, weight, bias, (stride,) * 2, (padding,) * 2, (1, 1), groups, relu=relu)
            plain = convolution(x, weight, None, (stride,) * 2, (padding,) * 2, (1, 1), groups)
    finally:
        torch.set_num_threads(before)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected.relu() if relu else expected, atol=tolerance, rtol=2**-6)
    torch.testing.assert_close(plain.float(), expected - bias.float()[:, None, None], atol=tolerance, rtol=2**-6)
    assert convolution(x[:0], weight, bias, groups=groups).shape[:2] == (0, 48)


def test_torch_has_the_operator_or_does_without() -> None:
    assert onednn._has_operator(torch.float32) in (True, False)
    assert not onednn._has_operator(torch.complex64)
