"""What the first bytes of an image file tell without decoding: format, size, depth and EXIF orientation.

JPEG and PNG are read here, as almost every image is one: no decoder object, no warning, some microseconds.
"""

import struct
from dataclasses import dataclass

from maskrcnn_core.errors import ImageError

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
)
_UNSUPPORTED_MAGIC = (
    (b"8BPS", "PSD"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"%PDF", "PDF"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\x89HDF", "HDF5"),
    (b"DDS ", "DDS"),
)
_SUPPORTED = "expected JPEG, PNG, WebP, BMP, GIF or TIFF"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_READABLE_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive Huffman
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Header:
    """Facts of a JPEG or PNG file.

    Attributes:
        height, width: pixels as stored.
        orientation: EXIF orientation 1..8; 1 where there is none.
    """

    height: int
    width: int
    orientation: int = 1


def sniff_format(encoded: bytes) -> str:
    """The format, by the first bytes: JPEG, PNG, WEBP, BMP, GIF or TIFF.

    Raises:
        ImageError: `unsupported` for other known formats, `unreadable` for anything else.
    """
    if not encoded:
        raise ImageError("unreadable", "the file is empty")
    for magic, name in _MAGIC:
        if encoded.startswith(magic):
            return name
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "WEBP"
    unsupported = next((name for magic, name in _UNSUPPORTED_MAGIC if encoded.startswith(magic)), None)
    if encoded[4:8] == b"ftyp":
        unsupported = "AVIF" if encoded[8:12] in (b"avif", b"avis") else "HEIC or another ISO media file"
    elif encoded[128:132] == b"DICM":
        unsupported = "DICOM"
    elif b"<svg" in encoded[:1024]:
        unsupported = "SVG"
    if unsupported is not None:
        raise ImageError("unsupported", f"{unsupported} is not read, {_SUPPORTED}; convert the file")
    raise ImageError("unreadable", f"not an image: it begins with {encoded[:8]!r}, {_SUPPORTED}")


def read_jpeg_header(encoded: bytes) -> Header:
    """Walk the JPEG segments up to the frame header (ITU-T T.81, annex B).

    Raises:
        ImageError: `unreadable` if cut or damaged, `unsupported` for lossless, arithmetic or 12-bit JPEG.
    """
    orientation = 1
    position = 2
    while position + 4 <= len(encoded):
        if encoded[position] != 0xFF:
            break
        marker = encoded[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            position += 2
            continue
        if marker in (0xD9, 0xDA):  # the picture begins, or is over, before any frame header
            break
        length = int.from_bytes(encoded[position + 2 : position + 4], "big")
        segment = encoded[position + 4 : position + 2 + length]
        if marker in _START_OF_FRAME:
            return _jpeg_frame(marker, segment, orientation)
        if marker == 0xE1 and segment.startswith(b"Exif\x00\x00"):
            orientation = read_orientation(segment[6:])
        position += 2 + length
    raise ImageError("unreadable", "damaged JPEG: it has no frame header")


def _jpeg_frame(marker: int, segment: bytes, orientation: int) -> Header:
    if len(segment) < 6:
        raise ImageError("unreadable", "damaged JPEG: its frame header is cut")
    precision, height, width = struct.unpack(">BHH", segment[:5])
    if marker not in _READABLE_FRAMES or precision != 8:
        raise ImageError(
            "unsupported",
            f"JPEG of type SOF{marker - 0xC0} with {precision} bits, expected baseline or progressive with 8 bits; "
            "convert the file",
        )
    if height == 0 or width == 0:
        raise ImageError("unreadable", f"damaged JPEG: its size is {width} x {height} pixels")
    return Header(height, width, orientation)


def read_png_header(encoded: bytes) -> Header:
    """Walk the PNG chunks up to the pixels.

    Raises:
        ImageError: `unreadable` if cut or damaged.
    """
    if len(encoded) < 33 or encoded[12:16] != b"IHDR":
        raise ImageError("unreadable", "damaged PNG: it has no header chunk")
    width, height = struct.unpack(">II", encoded[16:24])
    if not (0 < width < 2**31 and 0 < height < 2**31):
        raise ImageError("unreadable", f"damaged PNG: its size is {width} x {height} pixels")
    orientation = 1
    position = 8
    while position + 8 <= len(encoded):
        length, kind = struct.unpack(">I4s", encoded[position : position + 8])
        if kind == b"eXIf":
            orientation = read_orientation(encoded[position + 8 : position + 8 + length])
        if kind in (b"IDAT", b"IEND", b"eXIf"):
            break
        position += 12 + length
    return Header(height, width, orientation)


def read_orientation(exif: bytes) -> int:
    """The orientation 1..8 of an EXIF block that begins with its TIFF header; 1 where it has none or is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    (offset,) = struct.unpack(f"{order}I", exif[4:8])
    if offset + 2 > len(exif):
        return 1
    (entries,) = struct.unpack(f"{order}H", exif[offset : offset + 2])
    for entry in range(entries):
        start = offset + 2 + 12 * entry
        if start + 12 > len(exif):
            break
        tag, kind = struct.unpack(f"{order}HH", exif[start : start + 4])
        if tag == _ORIENTATION_TAG and kind == 3:
            (value,) = struct.unpack(f"{order}H", exif[start + 8 : start + 10])
            return int(value) if 1 <= value <= 8 else 1
    return 1
