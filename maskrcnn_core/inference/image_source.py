"""Whatever a notebook holds an image in, as bytes of a file or as pixels."""

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from maskrcnn_core.data.decode import decode_image, oriented, pil_pixels
from maskrcnn_core.data.files import read_image_file
from maskrcnn_core.errors import ImageError
from maskrcnn_core.printable import printable

ImageSource = bytes | str | os.PathLike[str] | NDArray[np.uint8] | Image.Image | Tensor
"""An image file's bytes, its path or URI, or pixels: an array [H, W, 3] uint8 RGB, a PIL image, a tensor [3, H, W]
uint8 RGB. An EXIF orientation turns a PIL image as it turns the file; arrays and tensors are taken as they are."""


def bytes_or_pixels(source: ImageSource, *, apply_exif: bool) -> bytes | Tensor:
    """The file's bytes, or the pixels as a tensor [3, H, W] uint8 RGB.

    Args:
        source: any.
        apply_exif: turn a PIL image by its EXIF orientation.

    Raises:
        ImageError: `missing` or `unreadable` file, or `unsupported` pixels.
    """
    given: Any = source
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    if isinstance(given, str | os.PathLike):
        return _read(os.fspath(given))
    if isinstance(given, Image.Image):
        pixels, orientation = pil_pixels(given)
        return (oriented(pixels, orientation) if apply_exif else pixels).contiguous()
    if isinstance(given, np.ndarray):
        _require_pixels(given, given.dtype == np.uint8, (given.shape[-1:] == (3,)), "array [H, W, 3] uint8 RGB")
        return torch.from_numpy(np.array(given)).permute(2, 0, 1).contiguous()
    if isinstance(given, Tensor):
        return checked_pixels(given)
    raise ImageError(
        "unsupported",
        f"got a {type(given).__name__}, expected an image: bytes, path, array [H, W, 3], PIL image or tensor [3, H, W]",
    )


def checked_pixels(pixels: Tensor) -> Tensor:
    """The same tensor on the host, made sure to be [3, H, W] uint8.

    Raises:
        ImageError: `unsupported`, it is not.
    """
    _require_pixels(pixels, pixels.dtype == torch.uint8, pixels.shape[:1] == (3,), "tensor [3, H, W] uint8 RGB")
    return pixels.cpu()


def decoded(source: ImageSource, *, max_pixels: int, apply_exif: bool) -> Tensor:
    """The pixels [3, H, W] uint8 RGB of any source (arguments and errors as `decode_image`)."""
    content = bytes_or_pixels(source, apply_exif=apply_exif)
    if isinstance(content, Tensor):
        return content
    return decode_image(content, max_pixels=max_pixels, apply_exif=apply_exif)


def source_name(source: object) -> str:
    """How messages call a source: its path, or what it is."""
    return printable(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else type(source).__name__


def _require_pixels(pixels: NDArray[Any] | Tensor, right_type: bool, right_channels: bool, expected: str) -> None:
    if right_type and right_channels and pixels.ndim == 3 and min(pixels.shape) > 0:
        return
    shape = list(pixels.shape)
    hint = "scale floating point to 0..255 and convert it to uint8"
    if right_type:
        hint = "exchange axes, repeat a grey channel 3 times, drop an alpha channel, give several images as a list"
    raise ImageError("unsupported", f"got pixels {shape} {pixels.dtype}, expected a non-empty {expected}; {hint}")


def _read(path: str | bytes) -> bytes:
    try:
        return read_image_file(os.fsdecode(path))
    except FileNotFoundError:
        raise ImageError("missing", "no such file") from None
    except OSError as error:
        raise ImageError("unreadable", f"cannot be read: {printable(' '.join(str(error).split()))}") from None
