"""Image crops: Pillow's crop and resize, context and what lies outside, and the two ways to the same numbers."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskrcnn_core.model.regions.image_crop import ImageCrop, crop_windows, triangle_weights, windows_around
from maskrcnn_core.structures import ImageFeatures


def pixels() -> Tensor:
    """[2, 3, 60, 90], noise."""
    return torch.randn(2, 3, 60, 90, generator=torch.Generator().manual_seed(0))


def by_pillow(image: Tensor, window: tuple[float, ...], size: int) -> Tensor:
    """[3, H, W] -> [3, size, size]; Pillow's crop gives zeros outside, too."""
    whole = math.floor(window[0]), math.floor(window[1]), math.ceil(window[2]), math.ceil(window[3])
    part = (window[0] - whole[0], window[1] - whole[1], window[2] - whole[0], window[3] - whole[1])
    planes = [
        Image.fromarray(plane.numpy()).crop(whole).resize((size, size), Image.Resampling.BILINEAR, box=part)
        for plane in image
    ]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))


@pytest.mark.parametrize("size", [7, 16, 40])
@pytest.mark.parametrize(
    "window",
    [
        (10.0, 20.0, 50.0, 44.0),  # reduced, and enlarged
        (0.0, 0.0, 90.0, 60.0),
        (-12.0, -5.0, 30.0, 70.0),  # beyond the borders
        (80.0, 50.0, 130.0, 90.0),
        (30.0, 30.0, 31.0, 33.0),  # a pixel or three
        (10.25, 20.5, 49.75, 43.125),  # parts of pixels
        (200.0, 200.0, 220.0, 230.0),  # wholly outside
    ],
    ids=str,
)
def test_a_crop_is_pillows_crop_and_resize(window: tuple[float, ...], size: int) -> None:
    got = ImageCrop(size, 0)([pixels()], torch.tensor([window]), torch.tensor([1]))
    torch.testing.assert_close(got[0], by_pillow(pixels()[1], window, size), atol=1e-5, rtol=1e-5)


def test_context_by_eye() -> None:
    # 16 of 227 pixels on each side: the region itself has 195 of them.
    window = windows_around(torch.tensor([[100.0, 200, 295, 590]]), 227, 16)
    torch.testing.assert_close(window, torch.tensor([[84.0, 168, 311, 622]]))
    boxes = torch.tensor([[0.1, 0.7, 33.3, 47.9]])
    assert torch.equal(windows_around(boxes, 227, 0), boxes)
    # A white image: what the crop shows of outside is the mean, 0.
    white = torch.ones(1, 3, 195, 195)
    crop = ImageCrop(227, 16)([white], torch.tensor([[0.0, 0, 195, 195]]), torch.tensor([0]))[0, 0]
    assert crop[:16].abs().max() == crop[:, -16:].abs().max() == 0
    assert crop[16:-16, 16:-16].min() == 1


def test_a_crop_at_its_own_size_is_the_pixels() -> None:
    crop = ImageCrop(24, 0)([pixels()], torch.tensor([[11.0, 7, 35, 31]]), torch.tensor([0]))
    torch.testing.assert_close(crop[0], pixels()[0, :, 7:31, 11:35], atol=1e-6, rtol=0)


def some_windows(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([140.0, 110.0]) - 30
    windows = torch.cat((corners, corners + 60 * torch.rand(count, 2, generator=generator)), dim=1)
    windows[0] = torch.tensor([20.0, 20, 20, 20])  # empty
    windows[1] = torch.tensor([-90.0, -80, -70, -60])
    return windows, torch.randint(0, 2, (count,), generator=generator)


def test_the_shapes_of_a_gpu_give_the_same() -> None:
    windows, images = some_windows(40)
    by_slices, at_once = (crop_windows(pixels(), windows, images, 13, fixed_size=fixed) for fixed in (False, True))
    torch.testing.assert_close(by_slices, at_once, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(at_once).all()
    # As many as are in memory at once, and more.
    together = ImageCrop(13, 2)([pixels()], windows, images)
    one_by_one = [ImageCrop(13, 2)([pixels()], windows[n : n + 1], images[n : n + 1]) for n in range(40)]
    torch.testing.assert_close(together, torch.cat(one_by_one), atol=1e-5, rtol=1e-5)


def test_weights_sum_to_one_inside() -> None:
    low, high = torch.tensor([3.3, 10.0, 0.0]), torch.tensor([61.2, 11.5, 80.0])
    weights = triangle_weights(low, high, 80, 9)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(3, 9), atol=1e-5, rtol=0)
    assert weights.min() >= 0


def test_no_regions_other_types_and_gradients() -> None:
    features = ImageFeatures([], (), torch.zeros(2, 2), pixels().requires_grad_())
    transform = ImageCrop(13, 2)
    (given,) = transform.maps(features)
    assert given is features.pixels
    assert transform([given], torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 13, 13)
    windows, images = some_windows(4)
    assert transform([given.bfloat16()], windows, images).dtype == torch.bfloat16
    crop = ImageCrop(12, 0)([given], torch.tensor([[10.0, 10, 46, 46]]), torch.tensor([1]))
    crop.sum().backward()
    # Every output pixel has weights of 1: 144 of each colour.
    assert features.pixels.grad is not None
    torch.testing.assert_close(features.pixels.grad.sum(), torch.tensor(3 * 144.0))
