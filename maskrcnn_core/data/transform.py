"""uint8 image -> network input, with the numbers of torchvision's GeneralizedRCNNTransform or of detectron2's loader.

The *resize rule* names whose: `float` interpolates floating-point values bilinearly and rounds sizes down
(torchvision); `float_nearest` does the same and rounds sizes to the nearest (mmdetection, which interpolates 8-bit
values, so that ours are within a half of its own); `antialias` filters the uint8 image with Pillow's bilinear filter,
which widens when it shrinks, back to uint8, and rounds sizes to the nearest (detectron2's ResizeShortestEdge and
ResizeTransform).
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.letterbox import GREY, letterbox
from maskrcnn_core.structures import ImageBatch

ResizeRule = Literal["float", "float_nearest", "antialias"]

_LARGE_PIXELS = 8_000_000
_ROWS_AT_ONCE = 64


def resized_size(
    height: int, width: int, short_side: int, long_side: int, rule: ResizeRule = "float"
) -> tuple[int, int]:
    """(height, width) of the network's input: `short_side` by the shorter side, `long_side` at most. All in pixels.

    Rounded as `rule` says (see above), but a side is never shorter than one pixel.
    """
    if rule == "antialias":
        scale = short_side / min(height, width)
        # In detectron2's order of operations, as products that lie at one half round by their last bit.
        sides = (float(short_side), scale * width) if height < width else (scale * height, float(short_side))
        if max(sides) > long_side:
            scale = long_side / max(sides)
            sides = (sides[0] * scale, sides[1] * scale)
        return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))
    scale = min(short_side / min(height, width), long_side / max(height, width))
    if rule == "float_nearest":
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    return max(1, math.floor(float(height * scale))), max(1, math.floor(float(width * scale)))


def fitted_size(height: int, width: int, rule: InputConfig, short_side: int, long_side: int) -> tuple[int, int]:
    """(height, width) in which the network sees an image, as a model's input asks for it.

    Args:
        height, width: of the image, pixels.
        short_side, long_side: in place of the rule's own, pixels.
    """
    if rule.fit != "aspect":
        return short_side, short_side
    return resized_size(height, width, short_side, long_side, rule.resize)


def prepare_image(
    image: Tensor,
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    channels: Literal["rgb", "bgr"] = "rgb",
    scale: Literal["unit", "byte"] = "unit",
    resize: ResizeRule = "float",
) -> Tensor:
    """Resize and normalise.

    Args:
        image: [3, H, W] uint8 RGB.
        size: (height, width) to resize to, pixels.
        mean, std: for each channel, in the order of `channels`, of values in the range of `scale`.
        channels: order that the network expects.
        scale: unit = values 0..1, byte = values 0..255, before normalisation.
        resize: the resize rule (see above).

    Returns:
        [3, h, w] float32, in memory channels last (a view of [h, w, 3]). With `float` (both rules) within 1e-5 of
        torchvision, which normalises before it resizes: both are linear. With `antialias` the resized values are
        Pillow's own.
    """
    resized = _resize_as_pillow(image, size).to(torch.float32) if resize == "antialias" else _resize(image, size)
    if channels == "bgr":
        resized = resized.flip(-1)
    factor, offset = normalisation(mean, std, scale)
    # As rows of w * 3 values the vector unit is full; over a last dimension of 3 it is not.
    rows = resized.view(size[0], -1)
    rows.mul_(factor.repeat(size[1])).add_(offset.repeat(size[1]))
    return resized.permute(2, 0, 1)


def prepare_input(image: Tensor, size: tuple[int, int], rule: InputConfig) -> Tensor:
    """`prepare_image` as a model's input asks for it, with margins where it does.

    Args:
        image: [3, H, W] uint8 RGB.
        size: of `fitted_size`.
    """
    inner, (top, left) = (
        (size, (0, 0)) if rule.fit != "letterbox" else letterbox((image.shape[1], image.shape[2]), size)
    )
    prepared = prepare_image(
        image, size=inner, mean=rule.mean, std=rule.std, channels=rule.channels, scale=rule.scale, resize=rule.resize
    )
    if inner == size:
        return prepared
    factor, offset = normalisation(rule.mean, rule.std, rule.scale)
    canvas = (GREY * factor + offset).expand(*size, 3).contiguous().permute(2, 0, 1)
    canvas[:, top : top + inner[0], left : left + inner[1]] = prepared
    return canvas


def resize_exactly(image: Tensor, size: tuple[int, int], rule: ResizeRule) -> Tensor | None:
    """The resized image where its values are whole numbers: [3, h, w] uint8, in memory [h, w, 3]; else None.

    `prepare_image` gives the same of it as of the image.

    Args:
        image: [3, H, W] uint8 RGB.
        size: (height, width) to resize to, pixels.
        rule: the resize rule (see above).
    """
    if rule != "antialias" and tuple(image.shape[1:]) != size:
        return None
    return _resize_as_pillow(image, size).permute(2, 0, 1)


def resize_on_device(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """What `prepare_image` resizes to by the rules `float` and `float_nearest`, before it normalises, on any device.

    Bit for bit what torch's kernel for one thread gives on a CPU that multiplies and adds in one rounding (`fma`), as
    all processors of servers do. torch's kernel for GPUs rounds otherwise.

    Args:
        pixels: [H, W, 3] uint8.
        size: (height, width) to resize to, pixels.

    Returns:
        [h, w, 3] float32, 0..255.
    """
    (above, below), down = _neighbours(pixels.shape[0], size[0], 0, size[0], pixels.device)
    (left, right), across = _neighbours(pixels.shape[1], size[1], 0, size[1], pixels.device)
    down, across = down[:, None, None], across[:, None]
    upper, lower = pixels.index_select(0, above), pixels.index_select(0, below)
    # The four neighbours by the products of their shares, in the kernel's order.
    values = upper.index_select(1, right).to(torch.float32) * ((1 - down) * across)
    values = _add_product(values, upper.index_select(1, left), (1 - down) * (1 - across))
    values = _add_product(values, lower.index_select(1, left), down * (1 - across))
    return _add_product(values, lower.index_select(1, right), down * across)


def _add_product(total: Tensor, pixels: Tensor, shares: Tensor) -> Tensor:
    """total + pixels * shares, rounded to float32 once: in float64 the product of 8 bits and 24 is exact, and the sum
    has what a share of 2^-21 or more leaves of it."""
    return (pixels.to(torch.float64) * shares.to(torch.float64) + total.to(torch.float64)).to(torch.float32)


def is_resized_on_device(image: Tensor, size: tuple[int, int], rule: ResizeRule) -> bool:
    """Whether `resize_on_device` gives the values of `prepare_image`, and the image has no more bytes than what it
    becomes in 16 bits.

    Args:
        image: [3, H, W] uint8.
        size: (height, width) of the network's input, pixels.
    """
    height, width = image.shape[1:]
    return rule != "antialias" and height * width <= min(2 * size[0] * size[1], _LARGE_PIXELS)


def normalisation(
    mean: Sequence[float], std: Sequence[float], scale: Literal["unit", "byte"] = "unit"
) -> tuple[Tensor, Tensor]:
    """Factor [3] and offset [3], float32: values 0..255 times the one plus the other are normalised.

    Arguments as `prepare_image`.
    """
    unit = 255.0 if scale == "unit" else 1.0
    factor = torch.tensor([1.0 / (unit * s) for s in std], dtype=torch.float32)
    return factor, torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[3, H, W] uint8 -> [h, w, 3] float32, contiguous and new.

    channels_last gives the same values as torch's usual layout, some twice as fast. (As a batch of grey images it would
    be faster still, but rounds the coordinates otherwise: 1e-4 away from torchvision.)
    """
    height, width = image.shape[-2:]
    if height * width > _LARGE_PIXELS and height > 2 * size[0]:
        return _interpolated(image, size, 0, 0, size)
    values = image[None].to(torch.float32, memory_format=torch.channels_last)
    if tuple(image.shape[-2:]) != size:
        values = F.interpolate(values, size=size, mode="bilinear", align_corners=False)
    return values[0].permute(1, 2, 0).contiguous()


def _resize_as_pillow(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[3, H, W] uint8 -> [h, w, 3] uint8 by Pillow itself. (torch's antialiased interpolation of uint8 is off by one in
    a value of some 600.)"""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    if pixels.shape[:2] != size:
        pixels = np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels)


def resized_part(
    image: Tensor, size: tuple[int, int], top: int, left: int, part: tuple[int, int], rule: ResizeRule = "float"
) -> Tensor:
    """A part of the resized image, without making the whole of it.

    Args:
        image: [3, H, W] uint8.
        size: (height, width) of the whole resized image, pixels.
        top, left: first row and column of the part in it.
        part: (height, width) of the part.

    Returns:
        [3, *part] uint8: with `float` (both rules) what resizing and cutting gives, rounded; with `antialias` Pillow's
        values, which at the part's border see only pixels inside of it.
    """
    height, width = image.shape[1:]
    if rule == "antialias":
        down, across = height / size[0], width / size[1]
        box = (left * across, top * down, min((left + part[1]) * across, width), min((top + part[0]) * down, height))
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        pixels = np.array(picture.resize(part[::-1], Image.Resampling.BILINEAR, box=box))
        return torch.from_numpy(pixels).permute(2, 0, 1)
    return _interpolated(image, size, top, left, part).round_().clamp_(0, 255).to(torch.uint8).permute(2, 0, 1)


def _interpolated(image: Tensor, size: tuple[int, int], top: int, left: int, part: tuple[int, int]) -> Tensor:
    """Part of [3, H, W] uint8 resized bilinearly to `size`, as [*part, 3] float32: 255 * 1e-7 from torch's own.

    Only the rows that the result depends on become floating-point values, and only some of them at a time: a float copy
    of an image of 100 megapixels would take 1.2 GB.
    """
    rows, row_share = _neighbours(image.shape[1], size[0], top, part[0])
    (before, after), column_share = _neighbours(image.shape[2], size[1], left, part[1])
    # Columns that the part does not need are not looked at.
    first_column = int(before[0])
    image = image[:, :, first_column : int(after[-1]) + 1]
    columns = before - first_column, after - first_column
    result = torch.empty(*part, len(image))
    for first in range(0, part[0], _ROWS_AT_ONCE):
        band = slice(first, first + _ROWS_AT_ONCE)
        above, below = (image.index_select(1, index[band]).to(torch.float32) for index in rows)
        line = above.lerp_(below, row_share[band, None])
        values = torch.lerp(line.index_select(2, columns[0]), line.index_select(2, columns[1]), column_share)
        result[band] = values.permute(1, 2, 0)
    return result


def _neighbours(
    length: int, resized: int, start: int, count: int, device: torch.device | None = None
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Of `count` places from `start` on a resized axis: the indices of both neighbours, and the second one's share."""
    # As torch does: the ratio in single precision, and one rounding of product and difference together.
    ratio = float(np.float32(length / resized))
    whole = torch.arange(start, start + count, device=device)
    places = ((whole.double() + 0.5) * ratio - 0.5).clamp(min=0).to(torch.float32)
    lower = places.floor().to(torch.int64).clamp(max=length - 1)
    return (lower, (lower + 1).clamp(max=length - 1)), (places - lower).to(torch.float32)


def pad_batch(
    prepared: Sequence[Tensor],
    original_sizes: Sequence[tuple[int, int]],
    divisor: int,
    *,
    letterboxed: bool = False,
    pinned: bool = False,
) -> ImageBatch:
    """Images of different sizes as one batch: zeros to the right and below, sides a multiple of `divisor`.

    `pixels` is channels_last in memory, as the convolutions are fastest.

    Args:
        prepared: of `prepare_image`, [3, h, w] float32 each; at least one.
        original_sizes: (height, width) of each image file, pixels.
        divisor: pixels.
        letterboxed: they have margins (`ImageBatch`).
        pinned: make all of it in page-locked memory, from which a GPU copies while the host goes on.
    """
    largest = (max(image.shape[1] for image in prepared), max(image.shape[2] for image in prepared))
    height, width = padded_size(largest, divisor)
    pixels = torch.zeros(len(prepared), height, width, 3, pin_memory=pinned).permute(0, 3, 1, 2)
    for slot, image in zip(pixels, prepared, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return ImageBatch(
        pixels=pixels,
        input_sizes=size_table([tuple(image.shape[-2:]) for image in prepared], pinned=pinned),
        original_sizes=size_table(original_sizes, pinned=pinned),
        letterboxed=letterboxed,
    )


def size_table(sizes: Sequence[tuple[int, ...]], *, pinned: bool = False) -> Tensor:
    """(height, width) of each image as [N, 2] int64, in page-locked memory if `pinned`."""
    return torch.tensor([tuple(size) for size in sizes], dtype=torch.int64, pin_memory=pinned)


def padded_size(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """(height, width) rounded up to multiples of `divisor`, all in pixels."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor
