"""Bytes of an image file -> uint8 RGB pixels. Whatever is wrong with the bytes becomes one `ImageError`.

JPEG goes through torchvision's decoder where it is installed (some 1.5 to 2 times as fast), everything else through
Pillow. (torchvision's PNG decoder can crash the process on damaged files.) What holds for all:
    alpha           dropped, the colour channels are taken as stored (as torchvision and COCO's tools do)
    16 bits         scaled from 0..65535 to 0..255 (Pillow's own conversion would clip to white)
    CMYK JPEG       inverted as Adobe writes it
    animations      the first frame
    floating point  and 32-bit integers: unsupported, as their range is not known
"""

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from torch import Tensor

from maskrcnn_core.data.header import Header, read_jpeg_header, read_orientation, read_png_header, sniff_format
from maskrcnn_core.errors import ImageError

with suppress(ImportError):  # loads torch.ops.image
    import torchvision.io  # noqa: F401

_RGB = 3  # torchvision.io.ImageReadMode.RGB
_HEADERS: dict[str, Callable[[bytes], Header]] = {"JPEG": read_jpeg_header, "PNG": read_png_header}
_PLUGINS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    # Called directly, as Image.open refuses by Pillow's own pixel limit, which is one setting of the whole process.
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}
_UNSUPPORTED_MODES = ("I", "F", "LAB", "HSV")
_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE_TAG = 258
# Pillow warns about harmless metadata. warnings.catch_warnings changes the whole process, so one thread at a time.
_warnings_lock = threading.RLock()


@contextmanager
def _quiet() -> Iterator[None]:
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode_image(encoded: bytes, *, max_pixels: int, apply_exif: bool) -> Tensor:
    """Decode an image file.

    Args:
        encoded: the whole file: JPEG, PNG, WebP, BMP, GIF or TIFF.
        max_pixels: larger images are refused, by their header, before any pixel is allocated.
        apply_exif: turn the image by its EXIF orientation.

    Returns:
        [3, H, W] uint8 RGB, contiguous.

    Raises:
        ImageError: `unreadable`, `unsupported` or `too_large`; no other exception.
    """
    name = sniff_format(encoded)
    decoder = _jpeg_decoder() if name == "JPEG" else None
    if decoder is not None:
        header = read_jpeg_header(encoded)
        _check_size(header, max_pixels)
        pixels = _decode_jpeg(decoder, encoded)
    else:
        header, pixels = _decode_with_pillow(encoded, name, max_pixels)
    if tuple(pixels.shape[1:]) != (header.height, header.width):
        raise ImageError("unreadable", f"damaged {name}: its pixels do not have the size that its header tells")
    return (_oriented(pixels, header.orientation) if apply_exif else pixels).contiguous()


def image_size(encoded: bytes, *, apply_exif: bool) -> tuple[int, int]:
    """(height, width) that `decode_image` would give, from the header alone. A prefix of a JPEG or PNG may do.

    Raises:
        ImageError: as `decode_image`, as far as the header shows it.
    """
    name = sniff_format(encoded)
    header = _HEADERS[name](encoded) if name in _HEADERS else _open(encoded, name)[1]
    turned = apply_exif and header.orientation >= 5
    return (header.width, header.height) if turned else (header.height, header.width)


def _check_size(header: Header, max_pixels: int) -> None:
    pixels = header.height * header.width
    if pixels > max_pixels:
        raise ImageError(
            "too_large",
            f"{header.width} x {header.height} = {pixels:,} pixels, expected at most {max_pixels:,}; "
            "shrink the image or raise max_pixels",
        )


def _oriented(pixels: Tensor, orientation: int) -> Tensor:
    """Turn by the EXIF orientation: 2..4 mirror or turn by 180 degrees, 5..8 exchange rows and columns first."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    axes = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels.flip(axes) if axes else pixels


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# ---- torchvision


def _jpeg_decoder() -> Callable[[Tensor, int], Tensor] | None:
    """torchvision's operator itself: its Python wrapper warns that it will be removed. None where it is missing."""
    try:
        decoder: Callable[[Tensor, int], Tensor] = torch.ops.image.decode_jpeg
        return decoder
    except (AttributeError, RuntimeError):
        return None


def _decode_jpeg(decoder: Callable[[Tensor, int], Tensor], encoded: bytes) -> Tensor:
    data = torch.from_numpy(np.frombuffer(encoded, dtype=np.uint8).copy())  # a tensor must be writable
    try:
        return decoder(data, _RGB)
    except Exception as error:
        raise ImageError("unreadable", f"damaged JPEG: {_one_line(error)}") from None


# ---- Pillow


def _to_eight_bits(pixels: Tensor, largest: int = 65535) -> Tensor:
    """0..largest -> 0..255, rounded to nearest."""
    values = pixels.to(torch.int32)
    return values.mul_(255).add_(largest // 2).div_(largest, rounding_mode="floor").to(torch.uint8)


def _decode_with_pillow(encoded: bytes, name: str, max_pixels: int) -> tuple[Header, Tensor]:
    image, header = _open(encoded, name)
    _check_size(header, max_pixels)
    try:
        with _quiet() if name == "TIFF" else nullcontext():  # it reads metadata to the end
            image.load()
        return header, _stored(image, name, header)
    except Exception as error:
        raise _as_image_error(error, name) from None


def _as_image_error(error: Exception, name: str) -> ImageError:
    """Whatever Pillow raised, as ours. Its readers of TIFF and WebP hold to its own pixel limit besides ours."""
    if isinstance(error, Image.DecompressionBombError):
        return ImageError("too_large", f"{name}: {_one_line(error)}")
    return ImageError("unreadable", f"damaged {name}: {_one_line(error)}")


def _open(encoded: bytes, name: str) -> tuple[Image.Image, Header]:
    """The image before any pixel is decoded. JPEG and PNG state their size and orientation by our own reading."""
    header = _HEADERS[name](encoded) if name in _HEADERS else None
    try:
        with _quiet():
            image = _PLUGINS[name](io.BytesIO(encoded))
            header = header or _header_of(image, name)
    except Exception as error:
        raise _as_image_error(error, name) from None
    if image.mode in _UNSUPPORTED_MODES:
        raise ImageError(
            "unsupported",
            f"{name} with pixels of kind {image.mode!r}, expected 8 or 16 bits a channel; convert the file",
        )
    return image, header


def _header_of(image: Image.Image, name: str) -> Header:
    orientation = _orientation(image, name)
    width, height = image.size
    if name == "TIFF" and orientation >= 5:  # Pillow gives the turned size
        width, height = height, width
    return Header(height, width, orientation)


def _orientation(image: Any, name: str) -> int:
    if name == "TIFF":
        value = image.tag_v2.get(_ORIENTATION_TAG, 1)
        return value if value in range(1, 9) else 1
    exif = image.info.get("exif", b"")
    return read_orientation(exif.removeprefix(b"Exif\x00\x00"))


def _stored(image: Any, name: str, header: Header) -> Tensor:
    """The decoded image as [3, H, W] uint8, not turned."""
    if image.mode.startswith("I;16"):
        bits = image.tag_v2.get(_BITS_PER_SAMPLE_TAG, (16,))[0] if name == "TIFF" else 16
        grey = torch.from_numpy(np.array(image).astype(np.int32))
        pixels = _to_eight_bits(grey, largest=2**bits - 1).expand(3, *grey.shape)
    else:
        if image.mode == "P":  # a transparent colour is a colour as any other
            image.info.pop("transparency", None)
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
    # Pillow turns a TIFF while loading: undo it. 6 and 8 are each other's inverse, all others their own.
    undo = {6: 8, 8: 6}.get(header.orientation, header.orientation) if name == "TIFF" else 1
    return _oriented(pixels, undo)
