"""Resizing and normalising, against torchvision's own transform and against Pillow."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.transform import fitted_size, pad_batch, prepare_image, prepare_input, resized_size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_of(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1066)), ((640, 480), (1066, 800)), ((100, 1000), (133, 1333)), ((800, 800), (800, 800))],
)
def test_resized_size_by_eye(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(*size, 800, 1333) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # 1066.67: rounded, not cut
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),  # 1199.06
        ((100, 1000), (133, 1333)),  # 133.3
        ((300, 641), (624, 1333)),  # 623.87: the longer side's limit
        ((800, 800), (800, 800)),
        ((16, 33), (646, 1333)),  # 646.3
    ],
)
def test_resized_size_of_the_antialias_rule_by_eye(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(*size, 800, 1333, "antialias") == expected


def test_a_side_at_one_half_is_rounded_up() -> None:
    assert resized_size(4, 5, 10, 100, "antialias") == (10, 13)  # 12.5
    assert resized_size(4, 5, 10, 100, "float_nearest") == (10, 13)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (800, 1067)),  # 1066.67
        ((500, 375), (1067, 800)),
        ((480, 640), (800, 1067)),
        ((427, 640), (800, 1199)),  # 1199.06
        ((400, 1000), (533, 1333)),  # by the long side: 533.2
        ((1, 5000), (1, 1333)),
        ((800, 1333), (800, 1333)),
    ],
)
def test_resized_size_of_the_float_nearest_rule_by_eye(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(*size, 800, 1333, "float_nearest") == expected


def scaled_by_mmcv(width: int, height: int, scale: tuple[int, int]) -> tuple[int, int]:
    """What mmcv's `rescale_size` says, written down from its description: (width, height) times the largest factor with
    which both edges stay within the two limits, each side by itself to the nearest."""
    long_limit, short_limit = max(scale), min(scale)
    factor = min(long_limit / max(width, height), short_limit / min(width, height))
    return int(width * factor + 0.5), int(height * factor + 0.5)


def test_sizes_of_mmdetection() -> None:
    random = np.random.default_rng(0)
    differing = 0
    for height, width in random.integers(50, 3000, (2000, 2)).tolist():
        for limits in ((1333, 800), (1333, 640), (2048, 1024)):
            ours = resized_size(height, width, limits[1], limits[0], "float_nearest")
            assert ours[::-1] == scaled_by_mmcv(width, height, limits), (height, width)
            differing += ours != resized_size(height, width, limits[1], limits[0])
    assert differing > 1000  # half of them are a pixel longer than torchvision's


def test_float_nearest_has_the_values_of_float() -> None:
    image = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8)
    prepared = [
        prepare_image(image, size=(24, 33), mean=MEAN, std=STD, resize=rule) for rule in ("float", "float_nearest")
    ]
    assert torch.equal(*prepared)


def test_a_side_is_never_empty() -> None:
    assert resized_size(1, 5000, 800, 1333) == (1, 1333)
    assert resized_size(1, 5000, 800, 1333, "antialias") == (1, 1333)


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


@pytest.mark.parametrize("size", [(20, 31), (97, 61), (64, 48), (130, 200), (1, 9), (48, 64)])
def test_antialias_gives_the_values_of_pillow(size: tuple[int, int]) -> None:
    image = image_of(48, 64)
    settings: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1), "scale": "byte", "resize": "antialias"}
    prepared = prepare_image(image, size=size, channels="bgr", **settings)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    assert prepared.shape == (3, *size)
    assert np.array_equal(prepared.flip(0).permute(1, 2, 0).numpy(), np.asarray(pillow))  # to the bit
    assert prepared.permute(1, 2, 0).is_contiguous()


def test_shrinking_averages_with_antialias_and_samples_without() -> None:
    stripes = torch.zeros(3, 8, 64, dtype=torch.uint8)
    stripes[..., ::4] = 200  # every fourth column: a quarter of the light
    settings: dict[str, Any] = {"size": (1, 8), "mean": (0, 0, 0), "std": (1, 1, 1), "scale": "byte"}
    smooth = prepare_image(stripes, resize="antialias", **settings)
    assert smooth[:, :, 1:-1].sub(50).abs().max() <= 1
    assert prepare_image(stripes, resize="float", **settings).max() == 100  # between a bright and a dark column


@pytest.mark.parametrize("size", [(3001, 4003), (2500, 6000)])
def test_large_images_give_the_values_of_torchvision_from_few_rows(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of(*size)
    expected = GeneralizedRCNNTransform(800, 1333, MEAN, STD).eval()([image.float() / 255])[0].tensors[0]
    target = resized_size(*size, 800, 1333)
    monkeypatch.setattr("torch.nn.functional.interpolate", None)  # which would need all of them
    found = prepare_image(image, size=target, mean=MEAN, std=STD)
    assert (found - expected[:, : target[0], : target[1]]).abs().max() < 1e-5


def test_antialias_leaves_the_image_alone() -> None:
    image = image_of(10, 12)
    before = image.clone()
    prepare_image(image, size=(10, 12), mean=(9, 9, 9), std=(2, 2, 2), scale="byte", resize="antialias")
    assert image.equal(before)


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


def test_a_square_keeps_no_aspect() -> None:
    square = InputConfig(short_side=300, fit="square")
    assert fitted_size(480, 640, square, 300, 1333) == (300, 300)
    assert fitted_size(640, 480, square, 512, 1333) == (512, 512)
    assert fitted_size(480, 640, InputConfig(), 800, 1333) == (800, 1066)


@pytest.mark.parametrize("size", [(480, 640), (123, 77), (300, 300), (1, 9)])
def test_a_square_is_torchvisions_fixed_size(size: tuple[int, int]) -> None:
    """As its SSD makes it: to the square, with no padding."""
    mean, std = (0.48235, 0.45882, 0.40784), (1 / 255,) * 3
    rule = InputConfig(short_side=300, fit="square", mean=mean, std=std, divisor=1)
    image = image_of(*size)
    theirs = GeneralizedRCNNTransform(300, 300, list(mean), list(std), size_divisible=1, fixed_size=(300, 300))
    expected = theirs([image.float() / 255])[0]
    prepared = prepare_input(image, fitted_size(*size, rule, rule.short_side, rule.long_side), rule)
    ours = pad_batch([prepared], [size], rule.divisor)
    assert ours.input_sizes.tolist() == [list(found) for found in expected.image_sizes]
    torch.testing.assert_close(ours.pixels, expected.tensors, atol=3e-3, rtol=0)  # of values up to 255
