"""YOLOv2's pyramid: Darknet's order of channels by a literal reference, and sizes that two does not divide."""

import pytest
import torch

from maskrcnn_core.model.pyramids.passthrough import Passthrough, reorganise


def darknet_reorg(x: torch.Tensor, stride: int) -> torch.Tensor:
    """The index arithmetic of Darknet's reorg_cpu with forward = 0, number by number, for one image."""
    channels, height, width = x.shape
    flat, result = x.reshape(-1), torch.zeros(x.numel())
    few = channels // stride**2
    for k in range(channels):
        for j in range(height):
            for i in range(width):
                index = i + width * (j + height * k)
                offset = k // few
                column, row = i * stride + offset % stride, j * stride + offset // stride
                result[index] = flat[column + width * stride * (row + height * stride * (k % few))]
    return result.reshape(channels * stride**2, height // stride, width // stride)


@pytest.mark.parametrize(("shape", "stride"), [((4, 2, 2), 2), ((16, 4, 6), 2), ((9, 3, 6), 3), ((3, 2, 2), 1)])
def test_reorganised_as_darknet_does(shape: tuple[int, int, int], stride: int) -> None:
    x = torch.arange(float(2 * shape[0] * shape[1] * shape[2])).reshape(2, *shape)
    found = reorganise(x, stride)
    for image, one in zip(x, found, strict=True):
        assert torch.equal(one, darknet_reorg(image, stride))


def test_it_is_no_space_to_depth() -> None:
    x = torch.arange(16.0).reshape(1, 4, 2, 2)
    # The memory 0 .. 15 as 4 x 4; even rows and columns of it are 0 2 8 10, the first channels of a cell each.
    assert reorganise(x)[0, :4, 0, 0].tolist() == [0, 2, 8, 10]


@pytest.mark.parametrize("size", [(4, 6), (3, 5)])
def test_one_level_with_both_maps(size: tuple[int, int]) -> None:
    pyramid = Passthrough((8, 12), 32, channels=6, narrow=4, norm="none")
    coarse = (-(-size[0] // 2), -(-size[1] // 2))
    maps = [torch.randn(2, 8, *size), torch.randn(2, 12, *coarse)]
    (level,) = pyramid(maps)
    assert pyramid.channels == level.shape[1] == 4 * 4 + 6
    assert level.shape[2:] == coarse
    level.sum().backward()
    assert all(parameter.grad is not None for parameter in pyramid.parameters())
