"""What travels packed arrives as the batch that the host would have prepared and padded, to the last bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.packed_inputs import InputImage, PackedInputs, pack_inputs
from maskrcnn_core.data.packing import pack
from maskrcnn_core.data.transform import (
    ResizeRule,
    is_resized_on_device,
    pad_batch,
    prepare_input,
    resize_exactly,
    resize_on_device,
)
from maskrcnn_core.structures import map_tensors

BYTES = {"scale": "byte", "channels": "bgr", "mean": (103.53, 116.28, 123.675), "std": (57.375, 57.12, 58.395)}
SIZES = [((20, 30), (31, 47)), ((25, 18), (40, 29)), ((9, 9), (9, 9))]


def picture(height: int, width: int, seed: int) -> Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


def as_item(image: Tensor, size: tuple[int, int], rule: InputConfig, on_device: bool = False) -> InputImage:
    original = (image.shape[1], image.shape[2])
    exact = resize_exactly(image, size, rule.resize)
    if exact is not None:
        return InputImage(exact, size, original)
    return InputImage(image if on_device else prepare_input(image, size, rule), size, original)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("resize", ["float", "float_nearest", "antialias"])
@pytest.mark.parametrize("others", [{}, BYTES])
@pytest.mark.parametrize("chosen", [(0,), (2,), (0, 1), (1, 2, 0), (2, 2)])
def test_packed_images_arrive_as_padded_ones(
    on_device: bool, dtype: torch.dtype, resize: ResizeRule, others: dict[str, object], chosen: tuple[int, ...]
) -> None:
    rule = InputConfig(short_side=30, long_side=50, resize=resize, **others)  # type: ignore[arg-type]
    images = [picture(*SIZES[index][0], seed) for seed, index in enumerate(chosen)]
    sizes = [SIZES[index][1] for index in chosen]
    originals = [SIZES[index][0] for index in chosen]
    items = [as_item(*pair, rule, on_device) for pair in zip(images, sizes, strict=True)]
    before = [item.pixels.clone() for item in items]
    packed = pack_inputs(items, rule, dtype)
    found = packed.to("cpu")

    prepared = [prepare_input(*pair, rule) for pair in zip(images, sizes, strict=True)]
    expected = pad_batch(prepared, originals, rule.divisor)
    assert found.pixels.dtype == dtype
    assert torch.equal(found.pixels, expected.pixels.to(dtype))
    assert found.pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found.input_sizes, expected.input_sizes)
    assert torch.equal(found.original_sizes, expected.original_sizes)
    assert all(torch.equal(item.pixels, copy) for item, copy in zip(items, before, strict=True))
    assert len(packed) == len(chosen)
    if resize == "antialias":
        assert packed.values.numel() == 0
        assert packed.pixels.numel() == sum(3 * height * width for height, width in sizes)
    elif on_device:
        assert packed.values.numel() == 0
        assert packed.pixels.numel() == sum(3 * height * width for height, width in originals)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 120), st.integers(1, 120), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_a_device_resizes_to_the_bits_of_a_host_that_computes_with_one_thread(
    height: int, width: int, new_height: int, new_width: int, seed: int
) -> None:
    image, size = picture(height, width, seed), (new_height, new_width)
    rule = InputConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale="byte")
    assert torch.equal(
        resize_on_device(image.permute(1, 2, 0), size), prepare_input(image, size, rule).permute(1, 2, 0)
    )


@pytest.mark.parametrize(
    ("file", "size", "rule", "expected"),
    [
        ((480, 640), (800, 1066), "float", True),
        ((480, 640), (800, 1066), "float_nearest", True),
        ((480, 640), (800, 1066), "antialias", False),
        ((1100, 1450), (800, 1054), "float", True),  # twice as many values, of half the bytes
        ((1200, 1600), (800, 1066), "float", False),
        ((2500, 4000), (2500, 3999), "float", False),  # which the host resizes a few rows at a time
    ],
)
def test_what_is_smaller_as_decoded_travels_so(
    file: tuple[int, int], size: tuple[int, int], rule: ResizeRule, expected: bool
) -> None:
    assert is_resized_on_device(torch.empty(3, *file, dtype=torch.uint8, device="meta"), size, rule) == expected


def test_values_that_are_whole_numbers_prepare_to_the_same() -> None:
    image = picture(21, 33, 0)
    for rule, size in (("antialias", (40, 60)), ("antialias", (10, 16)), ("antialias", (21, 33)), ("float", (21, 33))):
        exact = resize_exactly(image, size, rule)  # type: ignore[arg-type]
        assert exact is not None
        assert exact.dtype == torch.uint8
        config = InputConfig(resize=rule)  # type: ignore[arg-type]
        assert torch.equal(prepare_input(exact, size, config), prepare_input(image, size, config))
    assert resize_exactly(image, (40, 60), "float") is None
    assert resize_exactly(image, (40, 60), "float_nearest") is None


def test_an_image_of_one_pixel() -> None:
    rule = InputConfig(short_side=1, long_side=1, divisor=1)
    packed = pack_inputs([InputImage(picture(1, 1, 0), (1, 1), (1, 1))], rule)
    assert packed.to("cpu").pixels.shape == (1, 3, 1, 1)


def test_a_pack_is_one_piece_of_memory_in_order() -> None:
    images = [picture(2, 3, 0), picture(4, 1, 1).permute(1, 2, 0)]
    flat = pack(images, torch.uint8)
    assert torch.equal(flat, torch.cat([image.reshape(-1) for image in images]))
    assert torch.equal(pack(images, torch.bfloat16), flat.to(torch.bfloat16))
    assert pack([], torch.float32).numel() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("resize", ["float", "antialias"])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_gpu_computes_the_bits_of_the_host(dtype: torch.dtype, resize: ResizeRule, on_device: bool) -> None:
    rule = InputConfig(short_side=30, long_side=50, resize=resize, **BYTES)  # type: ignore[arg-type]
    items = [as_item(picture(*original, 0), size, rule, on_device) for original, size in SIZES]
    packed: PackedInputs = pack_inputs(items, rule, dtype)
    locked = map_tensors(packed, Tensor.pin_memory)
    assert torch.equal(locked.to("cuda").pixels.cpu(), packed.to("cpu").pixels)
