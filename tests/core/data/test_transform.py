"""Resizing and normalising, against torchvision's own transform."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from maskrcnn_core.data.transform import pad_batch, prepare_image, resized_size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_of(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1066)), ((640, 480), (1066, 800)), ((100, 1000), (133, 1333)), ((800, 800), (800, 800))],
)
def test_resized_size_by_eye(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(*size, 800, 1333) == expected


def test_a_side_is_never_empty() -> None:
    assert resized_size(1, 5000, 800, 1333) == (1, 1333)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(8, 40), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_sizes_of_torchvision(height: int, width: int, short_side: int, more: int) -> None:
    size = resized_size(height, width, short_side, short_side + more)
    if min(size) == 1:  # torchvision cannot make an empty side
        return
    transform = GeneralizedRCNNTransform(short_side, short_side + more, MEAN, STD).eval()
    images, _ = transform([torch.zeros(3, height, width)])
    assert images.image_sizes[0] == size


@pytest.mark.parametrize(("height", "width"), [(48, 64), (97, 61), (300, 200), (64, 64), (1, 7)])
def test_values_of_torchvision(height: int, width: int) -> None:
    image = image_of(height, width)
    transform = GeneralizedRCNNTransform(64, 100, MEAN, STD).eval()
    expected, _ = transform([image.float() / 255])
    prepared = prepare_image(image, size=resized_size(height, width, 64, 100), mean=MEAN, std=STD)
    batch = pad_batch([prepared], [(height, width)], 32)
    assert batch.pixels.shape == expected.tensors.shape
    torch.testing.assert_close(batch.pixels, expected.tensors, atol=1e-5, rtol=0)


def test_channels_and_scale() -> None:
    image = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, 2, 2)
    prepared = prepare_image(image, size=(2, 2), mean=(1, 2, 3), std=(1, 2, 4), channels="bgr", scale="byte")
    assert prepared[:, 0, 0].tolist() == [29.0, 9.0, 1.75]  # (30 - 1) / 1, (20 - 2) / 2, (10 - 3) / 4
    assert image[:, 0, 0].tolist() == [10, 20, 30]


def test_padding_is_zero_and_right_and_below() -> None:
    batch = pad_batch([torch.ones(3, 20, 33), torch.ones(3, 31, 5)], [(200, 330), (62, 10)], 32)
    assert batch.pixels.shape == (2, 3, 32, 64)
    assert batch.pixels.sum(dim=(1, 2, 3)).tolist() == [3 * 20 * 33, 3 * 31 * 5]
    assert batch.pixels[0, :, :20, :33].min() == 1
    assert batch.input_sizes.tolist() == [[20, 33], [31, 5]]
    assert batch.original_sizes.tolist() == [[200, 330], [62, 10]]
