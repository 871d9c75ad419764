"""Whatever a notebook holds an image in, as bytes of a file or as pixels."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from maskrcnn_core.data.decode import decode_image
from maskrcnn_core.data.files import Folder
from maskrcnn_core.errors import ImageError

ImageSource = bytes | str | os.PathLike[str] | NDArray[np.uint8] | Image.Image | Tensor
"""An image file's bytes, its path or URI, or pixels: an array [H, W, 3] uint8 RGB, a PIL image, a tensor [3, H, W]
uint8 RGB. Pixels are taken as they are; an EXIF orientation turns only what is decoded here."""


def bytes_or_pixels(source: ImageSource) -> bytes | Tensor:
    """The file's bytes, or the pixels as a tensor [3, H, W] uint8 RGB.

    Raises:
        ImageError: `missing` or `unreadable` file, or `unsupported` pixels.
    """
    given: Any = source
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    if isinstance(given, str | os.PathLike):
        return _read(os.fspath(given))
    if isinstance(given, Image.Image):
        return torch.from_numpy(np.array(given.convert("RGB"))).permute(2, 0, 1).contiguous()
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
    content = bytes_or_pixels(source)
    if isinstance(content, Tensor):
        return content
    return decode_image(content, max_pixels=max_pixels, apply_exif=apply_exif)


def source_name(source: object) -> str:
    """How messages call a source: its path, or what it is."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else type(source).__name__


def _require_pixels(pixels: NDArray[Any] | Tensor, right_type: bool, right_channels: bool, expected: str) -> None:
    if right_type and right_channels and pixels.ndim == 3 and min(pixels.shape) > 0:
        return
    shape = list(pixels.shape)
    hint = "scale floating point to 0..255 and convert it to uint8"
    if right_type:
        hint = "exchange axes, repeat a grey channel 3 times, drop an alpha channel, give several images as a list"
    raise ImageError("unsupported", f"got pixels {shape} {pixels.dtype}, expected a non-empty {expected}; {hint}")


def _read(path: str) -> bytes:
    try:
        if "://" not in path:
            return Path(path).read_bytes()
        folder, _, name = path.rpartition("/")
        return Folder(folder).read(name)
    except FileNotFoundError:
        raise ImageError("missing", "no such file") from None
    except (OSError, ValueError) as error:
        raise ImageError("unreadable", f"cannot be read: {' '.join(str(error).split())}") from None
