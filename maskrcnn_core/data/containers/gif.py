"""A GIF file as its decoder sees it: the screen, and from the first picture on. Comments and other extensions before it
may be of any size, and decide nothing but which colour is transparent."""

import re

from maskrcnn_core.data.containers.header import Header
from maskrcnn_core.errors import ImageError

_EXTENSION, _PICTURE = b"!", b","
_BLOCK = re.compile(rb"[!,;]")  # decoders skip stray bytes between blocks
_GRAPHIC_CONTROL = b"\xf9"
_SCREEN_BYTES = 13


def open_gif(encoded: bytes) -> tuple[Header, bytes]:
    """Size, and the file without what decides no pixel.

    Raises:
        ImageError: `unreadable`, damaged.
    """
    if len(encoded) < _SCREEN_BYTES:
        raise _damaged("its header is cut")
    start = position = _SCREEN_BYTES + _table_bytes(encoded[10])
    control = b""
    while (block := _BLOCK.search(encoded, position)) is not None and block.group() == _EXTENSION:
        stop = _after_blocks(encoded, block.end() + 1)
        if encoded[block.end() : block.end() + 1] == _GRAPHIC_CONTROL:
            control = encoded[block.start() : stop]
        position = stop
    position = len(encoded) if block is None else block.start()
    picture = encoded[position : position + 10]
    if picture[:1] != _PICTURE or len(picture) < 10:
        raise _damaged("it holds no picture")
    left, top, width, height = (int.from_bytes(picture[at : at + 2], "little") for at in (1, 3, 5, 7))
    screen_width, screen_height = (int.from_bytes(encoded[at : at + 2], "little") for at in (6, 8))
    # A picture that leaves the screen makes it larger.
    header = Header(max(screen_height, top + height), max(screen_width, left + width))
    if header.height == 0 or header.width == 0:
        raise _damaged(f"its size is {header.width} x {header.height} pixels")
    return header, encoded if position == start else encoded[:start] + control + encoded[position:]


def _table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(encoded: bytes, position: int) -> int:
    while position < len(encoded) and encoded[position]:
        position += 1 + encoded[position]
    return position + 1


def _damaged(how: str) -> ImageError:
    return ImageError("unreadable", f"damaged GIF: {how}")
