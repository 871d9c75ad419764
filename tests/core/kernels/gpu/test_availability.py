"""Where kernels are used, and the block in which none is."""

import os
from typing import Any

import pytest
import torch

from maskrcnn_core.kernels.gpu import availability
from maskrcnn_core.kernels.gpu.availability import SWITCH, Kernel, use_kernels, without_kernels


class OnGpu:
    """As much of a tensor as is asked."""

    is_cuda = True


ON_GPU: Any = OnGpu()


@pytest.mark.parametrize("before", [None, "masks"])
def test_within_the_block_no_kernel_is_used(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_work", lambda: True)
    monkeypatch.delenv(SWITCH, raising=False)
    if before is not None:
        monkeypatch.setenv(SWITCH, before)
    kernels: tuple[Kernel, ...] = ("suppression", "roi_align", "convolution", "masks")

    def used() -> list[str]:
        return [name for name in kernels if use_kernels(ON_GPU, name)]

    def fail_within() -> None:
        with without_kernels():
            assert used() == []
            with without_kernels():
                assert used() == []
            assert used() == []
            raise KeyError

    outside = used()
    assert outside == [name for name in kernels if name != before]
    with pytest.raises(KeyError):
        fail_within()
    assert used() == outside
    assert os.environ.get(SWITCH) == before


def test_on_a_cpu_none_is_used() -> None:
    assert not use_kernels(torch.zeros(1), "masks")


def test_where_triton_fails_torch_does_the_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("Failed to find C compiler.\nand more")

    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(availability, "_try", fail)
    availability._work.cache_clear()
    try:
        assert not any(use_kernels(ON_GPU, name) for name in availability.GPU_KERNELS)
    finally:
        availability._work.cache_clear()
    (entry,) = caplog.records  # said once
    assert "(Failed to find C compiler.); Triton needs a C compiler" in entry.message
    assert f"set {SWITCH}=all" in entry.message


def test_not_within_a_compiled_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_work", lambda: True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not use_kernels(ON_GPU, "convolution")
