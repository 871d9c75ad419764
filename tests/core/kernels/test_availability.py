"""Where kernels are used, and the block in which none is."""

import os

import pytest
import torch

from maskrcnn_core.kernels import availability
from maskrcnn_core.kernels.availability import SWITCH, use_kernels, without_kernels


class OnGpu:
    """As much of a tensor as is asked."""

    is_cuda = True


@pytest.mark.parametrize("before", [None, "masks"])
def test_within_the_block_no_kernel_is_used(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_installed", lambda: True)
    monkeypatch.delenv(SWITCH, raising=False)
    if before is not None:
        monkeypatch.setenv(SWITCH, before)
    kernels = ("suppression", "roi_align", "convolution", "masks")

    def used() -> list[str]:
        return [name for name in kernels if use_kernels(OnGpu(), name)]

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
