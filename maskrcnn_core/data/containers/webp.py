"""A WebP file as its decoder sees it: the canvas, which is what it allocates, and the chunks that decide pixels."""

import struct

from maskrcnn_core.data.containers.header import Header, read_orientation
from maskrcnn_core.errors import ImageError

_PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_EXTENDED_BYTES = 10
_METADATA_FLAGS = 0x20 | 0x08 | 0x04  # of VP8X: profile, EXIF, XMP


def open_webp(encoded: bytes) -> tuple[Header, bytes]:
    """Size and orientation, and the file without what decides no pixel; of a cut file, what is there.

    Raises:
        ImageError: `unreadable`, damaged.
    """
    kept: list[bytes] = []
    size, orientation, position, names = None, 1, 12, set()
    stop = min(len(encoded), 8 + int.from_bytes(encoded[4:8], "little"))
    while position + 8 <= stop:
        name, length = struct.unpack("<4sI", encoded[position : position + 8])
        after = position + 8 + length + length % 2
        names.add(name)
        if name in _PIXELS:
            chunk = encoded[position:after]
            size = size or _size(name, chunk[8:])
            kept.append(_without_metadata(chunk) if name == b"VP8X" else chunk)
        elif name == b"EXIF" and orientation == 1:
            exif = encoded[position + 8 : position + 8 + length]
            orientation = read_orientation(exif.removeprefix(b"Exif\x00\x00"))
        position = after
    if size is None:
        raise _damaged("it has no picture")
    if 0 in size:
        raise _damaged(f"its size is {size[1]} x {size[0]} pixels")
    header = Header(*size, orientation)
    if names <= set(_PIXELS):
        return header, encoded
    body = b"".join(kept)
    # A file that claims more than it has stays one that does.
    missing = 8 + int.from_bytes(encoded[4:8], "little") - stop
    return header, b"RIFF" + struct.pack("<I", min(4 + len(body) + missing, 2**32 - 2)) + b"WEBP" + body


def _size(name: bytes, body: bytes) -> tuple[int, int] | None:
    """(height, width) that a chunk tells; None where it tells none."""
    if name == b"VP8X" and len(body) >= _EXTENDED_BYTES:
        return 1 + int.from_bytes(body[7:10], "little"), 1 + int.from_bytes(body[4:7], "little")
    if name == b"VP8 " and len(body) >= 10:
        width, height = struct.unpack("<HH", body[6:10])
        return height & 0x3FFF, width & 0x3FFF
    if name == b"VP8L" and len(body) >= 5:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    return None


def _without_metadata(chunk: bytes) -> bytes:
    return chunk[:8] + bytes([chunk[8] & ~_METADATA_FLAGS]) + chunk[9:] if len(chunk) > 8 else chunk


def _damaged(how: str) -> ImageError:
    return ImageError("unreadable", f"damaged WEBP: {how}")
