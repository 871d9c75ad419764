"""A PNG file as its decoder sees it: the one header, and only the chunks that decide pixels.

Texts, profiles and animations are left out unread: they may be of any size, compressed or not, and be damaged.
"""

import struct
import zlib

from maskrcnn_core.data.containers.header import Header, read_orientation
from maskrcnn_core.errors import ImageError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_MOST_DEFLATED = 1032  # bytes that one byte of a zlib stream can stand for


def open_png(encoded: bytes) -> tuple[Header, bytes]:
    """Size and orientation, and the file without what decides no pixel; of a cut file, what is there.

    Raises:
        ImageError: `unreadable`, damaged.
    """
    if len(encoded) < 33 or encoded[12:16] != b"IHDR" or encoded[8:12] != b"\x00\x00\x00\x0d":
        raise _damaged("it has no header chunk")
    width, height = struct.unpack(">II", encoded[16:24])
    if not (0 < width < 2**31 and 0 < height < 2**31):
        raise _damaged(f"its size is {width} x {height} pixels")
    kept, orientation, position, has_pixels = [_SIGNATURE], 1, 8, False
    while position + 8 <= len(encoded):
        length, name = struct.unpack(">I4s", encoded[position : position + 8])
        stop = position + 12 + length
        if name == b"IEND":
            break
        if name == b"IHDR" and position > 8:
            raise _damaged("it has two header chunks")
        if name in (b"IHDR", b"IDAT") or (name in (b"PLTE", b"tRNS") and not has_pixels):
            has_pixels |= name == b"IDAT"
            _require_whole(encoded, position, stop, name)
            kept.append(encoded[position:stop])
        elif name == b"eXIf" and orientation == 1:
            orientation = read_orientation(encoded[position + 8 : stop - 4])
        position = stop
    else:
        return Header(height, width, orientation), b"".join(kept)  # without an end: it is cut
    kept.append(_END)
    return Header(height, width, orientation), encoded if sum(map(len, kept)) == len(encoded) else b"".join(kept)


def require_enough_data(content: bytes) -> None:
    """Refuse what cannot hold its picture before anything is allocated for it.

    Args:
        content: of `open_png`.

    Raises:
        ImageError: `unreadable`.
    """
    width, height, depth, color_type = struct.unpack(">IIBB", content[16:26])
    rows = height * (width * _CHANNELS.get(color_type, 1) * depth // 8)
    if len(content) * _MOST_DEFLATED < rows:
        raise _damaged(
            f"{len(content)} bytes are too few for its {width} x {height} pixels; it is cut, or its size is wrong"
        )


def _require_whole(encoded: bytes, position: int, stop: int, name: bytes) -> None:
    """Raises where a chunk that is there to its end is not what was written."""
    if stop > len(encoded):
        return  # the decoder finds out that it is cut
    stated = int.from_bytes(encoded[stop - 4 : stop], "big")
    if zlib.crc32(memoryview(encoded)[position + 4 : stop - 4]) != stated:
        raise _damaged(f"the checksum of its {name.decode()} chunk is wrong")


def _damaged(how: str) -> ImageError:
    return ImageError("unreadable", f"damaged PNG: {how}")
