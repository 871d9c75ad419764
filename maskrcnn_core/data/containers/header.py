"""What the first bytes of an image file tell without decoding: its format, and of an EXIF block the orientation."""

import re
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
    *((b"P%d" % number + blank, "PNM") for number in range(1, 8) for blank in (b"\n", b" ", b"\r", b"\t", b"#")),
    *((b"\x00%c%c\x00\x00" % (table, image_type), "TGA") for table in (0, 1) for image_type in (1, 2, 3, 9, 10, 11)),
)
# What other files begin with. Their bytes are not quoted: a name may lead to any file of the machine.
_OTHERS = (
    (re.compile(rb"\s*<(!doctype html|html|head|body)", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"\s*<(\?xml|error)", re.IGNORECASE), "an XML file"),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS (git lfs pull fetches the file)"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive"),
    (re.compile(rb"\x1f\x8b"), "compressed by gzip"),
    (re.compile(rb"\x00{16}"), "zeros"),
    (re.compile(rb"[\t\n\r\x20-\x7e]{16}|[\t\n\r\x20-\x7e]+\Z"), "text"),
)
_SUPPORTED = "expected JPEG, PNG, WebP, BMP, GIF or TIFF"
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Header:
    """What is known of a picture before any pixel is decoded.

    Attributes:
        height, width: pixels as stored.
        orientation: EXIF orientation 1..8; 1 where there is none.
        tile: pixels of one tile, where the file is made of tiles, which may be larger than the picture.
    """

    height: int
    width: int
    orientation: int = 1
    tile: int = 0


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
    other = next((what for begin, what in _OTHERS if begin.match(encoded)), "of no known format")
    raise ImageError("unreadable", f"not an image: it is {other}, {_SUPPORTED}")


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
        tag, field_type = struct.unpack(f"{order}HH", exif[start : start + 4])
        if tag == _ORIENTATION_TAG and field_type == 3:
            (value,) = struct.unpack(f"{order}H", exif[start + 8 : start + 10])
            return int(value) if 1 <= value <= 8 else 1
    return 1
