"""RoIAlign by loops against torchvision's operator and the embedding bag."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_core.kernels.cpu.region_features import align_regions
from maskrcnn_core.kernels.gpu.availability import without_kernels
from maskrcnn_core.model.regions import align as module
from maskrcnn_core.model.regions.align import SamplingGrid, align_by_embedding_bag, align_by_operator, roi_align

STRIDES = (4, 8)


def some_maps(channels: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((23, 31), (12, 16))
    return [
        torch.randn(2, channels, *size, generator=generator).to(dtype).to(memory_format=torch.channels_last)
        for size in sizes
    ]


def some_regions(number: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in, across and outside of maps of 92 x 124 pixels, some of them without area; images; levels."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, generator=generator) * 200 - 50
    sides = torch.rand(number, 2, generator=generator) * torch.tensor([90.0, 60.0])
    sides[::7] = 0.0
    images, levels = (torch.randint(2, (number,), generator=generator) for _ in range(2))
    return torch.cat((corners, corners + sides), dim=1), images, levels


@settings(max_examples=40, deadline=None)
@given(
    number=st.integers(1, 9),
    seed=st.integers(0, 1000),
    resolution=st.integers(1, 7),
    samples=st.integers(1, 3),
    aligned=st.booleans(),
    channels=st.sampled_from([64, 192]),
)
def test_it_is_torchvisions_operator(
    number: int, seed: int, resolution: int, samples: int, aligned: bool, channels: int
) -> None:
    maps, regions = some_maps(channels), some_regions(number, seed)
    found = align_regions(maps, *regions, STRIDES, resolution=resolution, samples=samples, aligned=aligned)
    wanted = align_by_operator(maps, *regions, STRIDES, SamplingGrid(resolution, samples, aligned))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference_takes_it_and_finds_what_the_embedding_bag_does(
    dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, regions, grid = some_maps(128, dtype), some_regions(50, 3), SamplingGrid(5, 2, False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            with without_kernels("roi_align"):
                wanted = roi_align(maps, *regions, STRIDES, grid)
            roi_align(maps, *regions, STRIDES, grid)  # tries once whether the loops find what the embedding bag does
            monkeypatch.delattr(module, "align_by_embedding_bag")
            found = roi_align(maps, *regions, STRIDES, grid)
    finally:
        torch.set_num_threads(before)
    assert found.dtype == wanted.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=0 if dtype == torch.float32 else 2**-8, atol=1e-5)


def test_what_needs_a_gradient_or_has_odd_channels_goes_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module, "_align_with")
    regions, grid = some_regions(4, 1), SamplingGrid(2, 2, False)
    maps = [level.requires_grad_() for level in some_maps(64)]
    assert roi_align(maps, *regions, STRIDES, grid).requires_grad
    with torch.inference_mode():
        assert roi_align(some_maps(40), *regions, STRIDES, grid).shape == (4, 40, 2, 2)
        mixed = [level.to(dtype) for level, dtype in zip(some_maps(64), (torch.float32, torch.bfloat16), strict=True)]
        assert (
            roi_align(mixed[:1], regions[0], regions[1], regions[2] * 0, (4,), SamplingGrid(2, 0, False)).shape[0] == 4
        )


def test_a_cell_that_is_no_number_reaches_its_bins_only() -> None:
    maps = some_maps(64)
    maps[0][0, :, 5, 5] = torch.nan
    boxes = torch.tensor([[16.0, 16.0, 28.0, 28.0], [60.0, 40.0, 90.0, 80.0]])
    zeros = torch.zeros(2, dtype=torch.int64)
    found = align_regions(maps, boxes, zeros, zeros, STRIDES, resolution=2, samples=2, aligned=True)
    wanted = align_by_embedding_bag(maps, boxes, zeros, zeros, STRIDES, SamplingGrid(2, 2, True))
    assert torch.equal(found.isnan(), wanted.isnan())
    assert bool(found[0].isnan().any())
    assert not found[1].isnan().any()
