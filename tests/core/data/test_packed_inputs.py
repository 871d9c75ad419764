"""What travels packed arrives as the batch that the host would have prepared and padded, to the last bit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.packed_inputs import PackedInputs, pack_inputs
from maskrcnn_core.data.packing import pack
from maskrcnn_core.data.transform import ResizeRule, pad_batch, prepare_image, resize_exactly
from maskrcnn_core.structures import map_tensors

BYTES = {"scale": "byte", "channels": "bgr", "mean": (103.53, 116.28, 123.675), "std": (57.375, 57.12, 58.395)}
SIZES = [((20, 30), (31, 47)), ((25, 18), (40, 29)), ((9, 9), (9, 9))]


def picture(height: int, width: int, seed: int) -> Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


def prepared(image: Tensor, size: tuple[int, int], rule: InputConfig) -> Tensor:
    return prepare_image(
        image, size=size, mean=rule.mean, std=rule.std, channels=rule.channels, scale=rule.scale, resize=rule.resize
    )


def as_item(image: Tensor, size: tuple[int, int], rule: InputConfig) -> Tensor:
    exact = resize_exactly(image, size, rule.resize)
    return prepared(image, size, rule) if exact is None else exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("resize", ["float", "float_nearest", "antialias"])
@pytest.mark.parametrize("settings", [{}, BYTES])
@pytest.mark.parametrize("chosen", [(0,), (2,), (0, 1), (1, 2, 0), (2, 2)])
def test_packed_images_arrive_as_padded_ones(
    dtype: torch.dtype, resize: ResizeRule, settings: dict[str, object], chosen: tuple[int, ...]
) -> None:
    rule = InputConfig(short_side=30, long_side=50, resize=resize, **settings)  # type: ignore[arg-type]
    images = [picture(*SIZES[index][0], seed) for seed, index in enumerate(chosen)]
    sizes = [SIZES[index][1] for index in chosen]
    originals = [SIZES[index][0] for index in chosen]
    items = [as_item(image, size, rule) for image, size in zip(images, sizes, strict=True)]
    before = [item.clone() for item in items]
    packed = pack_inputs(items, originals, rule, dtype)
    found = packed.to("cpu")

    expected = pad_batch([prepared(*pair, rule) for pair in zip(images, sizes, strict=True)], originals, rule.divisor)
    assert found.pixels.dtype == dtype
    assert torch.equal(found.pixels, expected.pixels.to(dtype))
    assert found.pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found.input_sizes, expected.input_sizes)
    assert torch.equal(found.original_sizes, expected.original_sizes)
    assert all(torch.equal(*pair) for pair in zip(items, before, strict=True))
    is_exact = resize == "antialias" or set(chosen) == {2}
    assert packed.values.dtype == (torch.uint8 if is_exact else dtype)
    values = sum(3 * height * width for height, width in sizes)
    assert packed.values.nbytes == values * (1 if is_exact else dtype.itemsize)
    assert len(packed) == len(chosen)


def test_values_that_are_whole_numbers_prepare_to_the_same() -> None:
    image = picture(21, 33, 0)
    for rule, size in (("antialias", (40, 60)), ("antialias", (10, 16)), ("antialias", (21, 33)), ("float", (21, 33))):
        exact = resize_exactly(image, size, rule)  # type: ignore[arg-type]
        assert exact is not None
        assert exact.dtype == torch.uint8
        config = InputConfig(resize=rule)  # type: ignore[arg-type]
        assert torch.equal(prepared(exact, size, config), prepared(image, size, config))
    assert resize_exactly(image, (40, 60), "float") is None
    assert resize_exactly(image, (40, 60), "float_nearest") is None


def test_only_one_image_narrower_than_a_pixel_of_padding() -> None:
    rule = InputConfig(short_side=1, long_side=1, divisor=1)
    packed = pack_inputs([picture(1, 1, 0)], [(1, 1)], rule)
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
def test_a_gpu_computes_the_bits_of_the_host(dtype: torch.dtype, resize: ResizeRule) -> None:
    rule = InputConfig(short_side=30, long_side=50, resize=resize, **BYTES)  # type: ignore[arg-type]
    items = [as_item(picture(*original, 0), size, rule) for original, size in SIZES]
    packed: PackedInputs = pack_inputs(items, [original for original, _ in SIZES], rule, dtype)
    locked = map_tensors(packed, Tensor.pin_memory)
    assert torch.equal(locked.to("cuda").pixels.cpu(), packed.to("cpu").pixels)
