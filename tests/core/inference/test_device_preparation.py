"""Resizing, normalising and padding on the device: the numbers of the host's, and no operation that waits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.transform import pad_batch, prepare_image, resized_size
from maskrcnn_core.inference.device_preparation import DevicePreparation, pack_images
from maskrcnn_core.inference.preparation import FailedImage, Preparation, PreparedImage, Request
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.structures import ImageBatch
from tests.core.model.test_fixed_size import NeverWaits

RULE = InputConfig(short_side=64, long_side=96)
CPU = torch.device("cpu")
# All of 64 x 96 once padded; two of a size apart from each other, one that needs no resizing.
SIZES = [(60, 90), (120, 178), (64, 96), (60, 90), (300, 440), (33, 49)]


def image_of(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


IMAGES = [image_of(*size, seed) for seed, size in enumerate(SIZES)]


def input_sizes(image: Tensor, *sides: int) -> tuple[tuple[int, int], ...]:
    return tuple(resized_size(image.shape[1], image.shape[2], side, side * 3 // 2) for side in sides)


def on_host(images: list[Tensor], view: int, sides: tuple[int, ...], rule: InputConfig = RULE) -> ImageBatch:
    prepared = [
        prepare_image(
            image,
            size=input_sizes(image, *sides)[view],
            mean=rule.mean,
            std=rule.std,
            channels=rule.channels,
            scale=rule.scale,
        )
        for image in images
    ]
    return pad_batch(prepared, [(image.shape[1], image.shape[2]) for image in images], rule.divisor)


def assert_same(got: ImageBatch, expected: ImageBatch, tolerance: float = 1e-5) -> None:
    assert got.pixels.shape == expected.pixels.shape
    assert got.pixels.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.pixels.float(), expected.pixels, atol=tolerance, rtol=tolerance)
    assert got.input_sizes.equal(expected.input_sizes)
    assert got.original_sizes.equal(expected.original_sizes)
    for pixels, (height, width) in zip(got.pixels, got.input_sizes.tolist(), strict=True):
        assert not pixels[:, height:].any()
        assert not pixels[:, :, width:].any()


def by_size(images: list[Tensor]) -> list[Tensor]:
    return sorted(images, key=lambda image: tuple(image.shape))


@pytest.mark.parametrize("images", [IMAGES, by_size(IMAGES), IMAGES[:1]])
@pytest.mark.parametrize("pixels_at_once", [1, 2 * 60 * 90, 1 << 24])
def test_the_numbers_of_the_host(images: list[Tensor], pixels_at_once: int) -> None:
    packed = pack_images(images, [input_sizes(image, 64) for image in images], pinned=False)
    found = DevicePreparation(RULE, CPU, pixels_at_once=pixels_at_once).batches(packed)
    assert len(found) == 1
    assert_same(found[0], on_host(images, 0, (64,)))


@pytest.mark.parametrize(("channels", "scale"), [("bgr", "byte"), ("rgb", "byte"), ("bgr", "unit")])
def test_channels_and_scale(channels: Literal["rgb", "bgr"], scale: Literal["unit", "byte"]) -> None:
    mean = (103.5, 116.3, 123.7) if scale == "byte" else (0.4, 0.45, 0.5)
    rule = replace(RULE, channels=channels, scale=scale, mean=mean, std=(1.0, 0.5, 2.0))
    packed = pack_images(IMAGES, [input_sizes(image, 64) for image in IMAGES], pinned=False)
    assert_same(DevicePreparation(rule, CPU).batches(packed)[0], on_host(IMAGES, 0, (64,), rule))


def test_several_views_of_one_upload() -> None:
    sides = (48, 64, 96)
    packed = pack_images(IMAGES, [input_sizes(image, *sides) for image in IMAGES], pinned=False)
    for view, found in enumerate(DevicePreparation(RULE, CPU).batches(packed)):
        assert_same(found, on_host(IMAGES, view, sides))


def test_half_precision_is_the_rounding_of_float() -> None:
    packed = pack_images(IMAGES, [input_sizes(image, 64) for image in IMAGES], pinned=False)
    whole, half = (DevicePreparation(RULE, CPU, dtype).batches(packed)[0] for dtype in (torch.float32, torch.bfloat16))
    assert half.pixels.dtype == torch.bfloat16
    assert half.pixels.equal(whole.pixels.bfloat16())


def test_nothing_waits_for_the_device() -> None:
    packed = pack_images(IMAGES, [input_sizes(image, 48, 64) for image in IMAGES], pinned=False)
    preparation = DevicePreparation(RULE, CPU)
    with NeverWaits():
        preparation.batches(packed)


def test_one_pixel() -> None:
    image = image_of(1, 1)
    packed = pack_images([image], [((64, 64),)], pinned=False)
    found = DevicePreparation(RULE, CPU).batches(packed)[0]
    expected = prepare_image(image, size=(64, 64), mean=RULE.mean, std=RULE.std)
    torch.testing.assert_close(found.pixels[0], expected, atol=1e-5, rtol=1e-5)


# ---- which images are left to it


def preparation_of(**settings: Any) -> Preparation:
    asked = PredictorSettings(batch_pixels=10**6, **settings)
    return Preparation(RULE, asked, DevicePreparation(RULE, CPU))


def grouped(preparation: Preparation, images: Sequence[Tensor]) -> list[list[PreparedImage]]:
    *groups, last = preparation.batches(Request(key, image) for key, image in enumerate(images))
    assert last == []
    assert not any(isinstance(group, FailedImage) for group in groups)
    return groups  # type: ignore[return-value]


def test_images_are_grouped_by_padded_shape_without_being_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn_core.inference.preparation.prepare_input", None)
    images = [*IMAGES, image_of(90, 60), *IMAGES]
    groups = grouped(preparation_of(), images)
    assert [sorted(item.key for item in group) for group in groups] == [[0, 1, 2, 3, 4, 5, *range(7, 13)], [6]]
    # Equal sizes side by side, which are resized together.
    assert [item.original_size for item in groups[0]] == sorted(SIZES * 2)


def test_a_large_image_is_resized_on_the_host_and_has_a_batch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn_core.inference.preparation.PIXELS_AT_ONCE", 60 * 90)
    preparation = preparation_of()
    images = [image_of(60, 90), image_of(61, 90), image_of(60, 90, 1)]
    groups = grouped(preparation, images)
    assert [[item.key for item in group] for group in groups] == [[0, 2], [1]]
    for group in groups:
        batch = preparation.padded(group)
        expected = on_host([images[item.key] for item in group], 0, (64,))
        assert_same(preparation.views(batch)[0], expected)
