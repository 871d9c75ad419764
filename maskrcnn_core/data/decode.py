"""Bytes of an image file -> uint8 RGB pixels. Whatever is wrong with the bytes becomes one `ImageError`.

JPEG goes through torchvision's decoder where it is installed (some 1.5 to 2 times as fast), everything else through
Pillow. (torchvision's PNG decoder can crash the process on damaged files.) A decoder is never given the file itself:
The files of `containers` read its structure, and leave in it the one size that is checked here and what
decides pixels, so that no metadata is unpacked, costs memory or makes a picture unreadable. What holds for all:
    alpha           dropped, the colour channels are taken as stored (as torchvision and COCO's tools do)
    16 bits         scaled from 0..65535 to 0..255 (Pillow's own conversion would clip to white)
    CMYK JPEG       inverted as Adobe writes it
    animations      the first frame
    floating point  and 32-bit integers: unsupported, as their range is not known
    a cut file      unreadable, also with an end mark behind what is left; a JPEG that lacks only that mark is whole
"""

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from torch import Tensor

from maskrcnn_core.data.containers import jpeg, png
from maskrcnn_core.data.containers.gif import open_gif
from maskrcnn_core.data.containers.header import Header, read_orientation, sniff_format
from maskrcnn_core.data.containers.jpeg import JpegFile, open_jpeg
from maskrcnn_core.data.containers.png import open_png
from maskrcnn_core.data.containers.tiff import open_tiff
from maskrcnn_core.data.containers.webp import open_webp
from maskrcnn_core.errors import ImageError
from maskrcnn_core.printable import printable

with suppress(ImportError):  # loads torch.ops.image
    import torchvision.io  # noqa: F401

_RGB = 3  # torchvision.io.ImageReadMode.RGB
_PLUGINS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    # Called directly, as Image.open refuses by Pillow's own pixel limit, which is one setting of the whole process.
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}
_FILES: dict[str, Callable[[bytes], tuple[Header, bytes]]] = {
    "PNG": open_png,
    "GIF": open_gif,
    "TIFF": open_tiff,
    "WEBP": open_webp,
}
_UNSUPPORTED_REASONS = ("Unsupported ", "unknown pixel mode")  # how Pillow's texts begin about what it does not read
_UNSUPPORTED_MODES = ("I", "F", "LAB", "HSV")
_BITS_PER_SAMPLE_TAG, _PHOTOMETRIC_TAG, _ORIENTATION_TAG = 258, 262, 274
_WHITE_IS_ZERO = 0
_LONGEST_REASON = 200
# libjpeg makes of what is missing the grey of no data; bits that are no picture's data, to tell it from a grey picture.
_NO_DATA = 128
_FILLER = b"\x5a" * 256
_SOURCE_PLACE = re.compile(r"^.*\.cpp:\d+,\s*")  # torchvision's texts begin with where in its sources they arose
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
    return decode_pixels(encoded, max_pixels=max_pixels, apply_exif=apply_exif).contiguous()


def decode_pixels(encoded: bytes, *, max_pixels: int, apply_exif: bool) -> Tensor:
    """`decode_image` without its last copy: in the memory layout that the decoder has, for JPEG [H, W, 3]."""
    name = sniff_format(encoded)
    try:
        if name == "JPEG":
            header, pixels = _decode_jpeg(encoded, max_pixels)
        else:
            header, pixels = _decode_with_pillow(encoded, name, max_pixels)
    except ImageError:
        raise
    except Exception as error:
        raise _as_image_error(error, name) from None
    return oriented(pixels, header.orientation) if apply_exif else pixels


def image_size(encoded: bytes, *, apply_exif: bool) -> tuple[int, int]:
    """(height, width) that `decode_image` would give, from the header alone. A prefix of a JPEG or PNG may do.

    Raises:
        ImageError: as `decode_image`, as far as the header shows it.
    """
    name = sniff_format(encoded)
    if name == "JPEG":
        header = open_jpeg(encoded).header
    else:
        header = _FILES[name](encoded)[0] if name in _FILES else _open_bmp(encoded)[0]
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
    if header.tile > max(max_pixels, pixels):
        raise ImageError(
            "too_large",
            f"{header.width} x {header.height} pixels in tiles of {header.tile:,}, expected at most {max_pixels:,}; "
            "write the image without tiles",
        )


def oriented(pixels: Tensor, orientation: int) -> Tensor:
    """[3, H, W] turned by the EXIF orientation: 2..4 mirror or turn by 180 degrees, 5..8 exchange rows and columns
    first."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    axes = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels.flip(axes) if axes else pixels


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return printable(_SOURCE_PLACE.sub("", lines[0]))[:_LONGEST_REASON] if lines else type(error).__name__


# ---- JPEG


def _decode_jpeg(encoded: bytes, max_pixels: int) -> tuple[Header, Tensor]:
    file = open_jpeg(encoded)
    _check_size(file.header, max_pixels)
    jpeg.require_enough_data(file)
    if not file.frame.progressive and not jpeg.has_all_scans(file):
        raise ImageError("unreadable", "damaged JPEG: the scan of one of its components is missing")
    decode = _jpeg_decoder() or _jpeg_with_pillow
    try:
        pixels = decode(file.content)
    except Exception as error:
        pixels = _without_end_mark(decode, file, error)
    else:
        if _may_be_cut(pixels) and not file.frame.progressive and not _is_whole(decode, file, pixels):
            raise ImageError("unreadable", "damaged JPEG: its data end before the picture does")
    if tuple(pixels.shape[1:]) != (file.header.height, file.header.width):
        raise ImageError("unreadable", "damaged JPEG: its pixels do not have the size that its header tells")
    return file.header, pixels


def _without_end_mark(decode: Callable[[bytearray], Tensor], file: JpegFile, error: Exception) -> Tensor:
    """The pixels of a file that lacks nothing but its end mark; else what the decoder said of it, raised."""
    if jpeg.has_all_scans(file):
        with suppress(Exception):
            pixels = decode(jpeg.with_end(file, b""))
            if _is_whole(decode, file, pixels):
                return pixels
    raise ImageError("unreadable", f"damaged JPEG: {_one_line(error)}") from None


def _is_whole(decode: Callable[[bytearray], Tensor], file: JpegFile, pixels: Tensor) -> bool:
    """Whether the decoder had all it needed: then what else stands before the end makes no difference."""
    try:
        return bool(decode(jpeg.with_end(file, _FILLER)).equal(pixels))
    except Exception:
        return False


def _may_be_cut(pixels: Tensor) -> bool:
    return pixels[:, -1, -1].tolist() == [_NO_DATA] * 3


def _jpeg_decoder() -> Callable[[bytearray], Tensor] | None:
    """torchvision's operator itself: its Python wrapper warns that it will be removed. None where it is missing."""
    try:
        decoder: Callable[[Tensor, int], Tensor] = torch.ops.image.decode_jpeg
    except (AttributeError, RuntimeError):
        return None
    return lambda content: decoder(torch.frombuffer(content, dtype=torch.uint8), _RGB)


def _jpeg_with_pillow(content: bytearray) -> Tensor:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(content))
    image.load()
    return pixels_of(image)


# ---- Pillow


def _decode_with_pillow(encoded: bytes, name: str, max_pixels: int) -> tuple[Header, Tensor]:
    if name == "BMP":
        header, image = _open_bmp(encoded)
        _check_size(header, max_pixels)
    else:
        header, content = _FILES[name](encoded)
        _check_size(header, max_pixels)
        if name == "PNG":
            png.require_enough_data(content)
        image = _opened(content, name)
    _require_known_range(image, name)
    if image.size != (header.width, header.height):
        raise ImageError("unreadable", f"damaged {name}: its pixels do not have the size that its header tells")
    try:
        image.load()
        return header, pixels_of(image)
    except Exception as error:
        raise _as_image_error(error, name) from None


def _open_bmp(encoded: bytes) -> tuple[Header, Image.Image]:
    """A BMP file has no metadata, and its reader allocates nothing before the pixels."""
    image = _opened(encoded, "BMP")
    return Header(image.height, image.width), image


def _opened(content: bytes, name: str) -> Image.Image:
    """The image before any pixel is decoded."""
    try:
        with _quiet():
            return _PLUGINS[name](io.BytesIO(content))
    except Exception as error:
        raise _as_image_error(error, name) from None


def _as_image_error(error: Exception, name: str) -> ImageError:
    """Whatever Pillow raised, as ours. Its readers of TIFF and WebP hold to its own pixel limit besides ours."""
    if isinstance(error, Image.DecompressionBombError):
        return ImageError("too_large", f"{name}: {_one_line(error)}")
    if isinstance(error.__cause__, KeyError) and error.__cause__.args != (TiffImagePlugin.COLORMAP,):
        # Of a table of what there is, as that of a TIFF's compressions.
        return ImageError("unsupported", f"{name} of kind {_one_line(error)}, which is not read; convert the file")
    if str(error).startswith(_UNSUPPORTED_REASONS):
        return ImageError("unsupported", f"{name}: {_one_line(error)}; convert the file")
    return ImageError("unreadable", f"damaged {name}: {_one_line(error)}")


def _require_known_range(image: Image.Image, name: str) -> None:
    if image.mode in _UNSUPPORTED_MODES:
        raise ImageError(
            "unsupported",
            f"{name} with pixels of kind {image.mode!r}, expected 8 or 16 bits a channel; convert the file",
        )


def pil_pixels(image: Image.Image) -> tuple[Tensor, int]:
    """The pixels of an image that somebody else has opened or made, as those of its file would be, and the EXIF
    orientation that they have yet to be turned by.

    Raises:
        ImageError: `unreadable` or `unsupported`.
    """
    name = image.format or "PIL image"
    turned = getattr(image, "tag_v2", {}).get(_ORIENTATION_TAG, 1)  # a TIFF is turned when it is loaded
    try:
        with _quiet():
            image.load()
    except Exception as error:
        return _pixels_of_open_file(image, _as_image_error(error, name))
    _require_known_range(image, name)
    if 0 in image.size:
        raise ImageError("unsupported", f"{name} of {image.width} x {image.height} pixels, expected some")
    try:
        pixels = pixels_of(image)
    except Exception as error:
        raise _as_image_error(error, name) from None
    if turned in range(2, 9):
        return oriented(pixels, {6: 8, 8: 6}.get(turned, turned)), turned  # all others are their own inverse
    exif = image.info.get("exif")
    return pixels, read_orientation(exif.removeprefix(b"Exif\x00\x00")) if isinstance(exif, bytes) else 1


def _pixels_of_open_file(image: Any, error: ImageError) -> tuple[Tensor, int]:
    """`pil_pixels` where Pillow is stricter than we are: of the bytes of its file, if that is still open."""
    with suppress(Exception):
        image.fp.seek(0)
        encoded = image.fp.read()
        if sniff_format(encoded) == "JPEG":
            header, pixels = _decode_jpeg(encoded, image.width * image.height)
            return pixels, header.orientation
    raise error


def pixels_of(image: Any) -> Tensor:
    """A decoded image of any mode of 8 or 16 bits as [3, H, W] uint8 RGB; it is left as it is."""
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        largest = 2 ** tags.get(_BITS_PER_SAMPLE_TAG, (16,))[0] - 1
        grey = torch.from_numpy(np.array(image).astype(np.int32))
        if tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:  # which Pillow heeds up to 8 bits only
            grey = largest - grey
        return _to_eight_bits(grey, largest).expand(3, *grey.shape)
    if image.mode == "La":  # of all modes the one that Pillow cannot convert at once
        image = image.convert("LA")
    if image.mode in ("P", "PA") and "transparency" in image.info:  # a transparent colour is a colour as any other
        image = image.copy()
        del image.info["transparency"]
    rgb = image if image.mode in ("RGB", "RGBA", "RGBX") else image.convert("RGB")
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in rgb.split()[:3]]))


def _to_eight_bits(pixels: Tensor, largest: int) -> Tensor:
    """0..largest -> 0..255, rounded to nearest."""
    return pixels.mul(255).add_(largest // 2).div_(largest, rounding_mode="floor").to(torch.uint8)
