"""A TIFF file as its decoder sees it (TIFF 6.0, BigTIFF): the first picture's directory, and of that only the fields
that decide pixels. Other pages, thumbnails and metadata are cut off unread."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from maskrcnn_core.data.containers.header import Header
from maskrcnn_core.errors import ImageError

_WIDTH, _HEIGHT, _ROWS_PER_STRIP, _SAMPLES, _PLANES = 256, 257, 278, 277, 284
_TILE_WIDTH, _TILE_HEIGHT, _ORIENTATION = 322, 323, 274
_PIECES = (273, 279, 324, 325)  # offsets and byte counts of strips and tiles
# Besides: bits, compression, photometric kind, fill order, fax options, predictor, palette, ink set, extra samples,
# sample format, JPEG's tables, and how YCbCr is stored.
_KEPT = frozenset(
    {_WIDTH, _HEIGHT, _ROWS_PER_STRIP, _SAMPLES, _PLANES, _TILE_WIDTH, _TILE_HEIGHT, *_PIECES}
    | {258, 259, 262, 266, 292, 293, 317, 320, 332, 338, 339, 347, 529, 530, 531, 532}
    | set(range(512, 522))
)
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MOST_PIECES = 1 << 20
_MOST_VALUES = 3 << 16  # of any other field: a palette of 16 bits


@dataclass(frozen=True)
class _Layout:
    """How a directory is written: classic or BigTIFF.

    Attributes:
        order: `<` or `>`.
        count, entry: formats of the number of entries, and of an entry before its value.
        offset: format of an offset, which is also what a value fits in.
    """

    order: str
    count: str
    entry: str
    offset: str

    def read(self, form: str, encoded: bytes | bytearray, position: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(self.order + form, encoded, position)
        except (struct.error, OverflowError):  # an offset of 64 bits may be more than any place in memory
            raise _damaged("it is cut") from None

    def size(self, form: str) -> int:
        return struct.calcsize(self.order + form)


def open_tiff(encoded: bytes) -> tuple[Header, bytes]:
    """Size and orientation, and the file with a directory of what decides pixels, without the orientation.

    Raises:
        ImageError: `unreadable` if cut or damaged, `unsupported` if big-endian BigTIFF or of too many pieces.
    """
    order = "<" if encoded[:2] == b"II" else ">"
    is_big = 43 in encoded[2:4]
    if is_big and order == ">":
        raise ImageError(
            "unsupported", "BigTIFF of big-endian order is not read, expected little-endian; convert the file"
        )
    layout = _Layout(order, "Q", "HHQ", "Q") if is_big else _Layout(order, "H", "HHI", "I")
    (start,) = layout.read(layout.offset, encoded, 8 if is_big else 4)
    (number,) = layout.read(layout.count, encoded, start)
    first, entry_bytes = start + layout.size(layout.count), layout.size(layout.entry) + layout.size(layout.offset)
    if number > 65_536 or first + number * entry_bytes > len(encoded):
        raise _damaged("its directory is cut")
    kept: list[bytes] = []
    single: dict[int, int] = {}
    seen: set[int] = set()
    for position in range(first, first + number * entry_bytes, entry_bytes):
        tag, field_type, count = layout.read(layout.entry, encoded, position)
        if tag in seen or (tag not in _KEPT and tag != _ORIENTATION):
            continue
        seen.add(tag)
        if count == 1 and field_type in _INTEGERS:
            (single[tag],) = layout.read(_INTEGERS[field_type], encoded, position + layout.size(layout.entry))
        if tag != _ORIENTATION:
            _require_field(layout, encoded, position, tag)
            kept.append(encoded[position : position + entry_bytes])
    header = _header(single)
    _require_pieces(layout, kept, single)
    content = bytearray(encoded)
    directory = struct.pack(order + layout.count, len(kept)) + b"".join(kept) + bytes(layout.size(layout.offset))
    content[start : start + len(directory)] = directory
    return header, bytes(content)


def _header(single: Mapping[int, int]) -> Header:
    height, width = single.get(_HEIGHT, 0), single.get(_WIDTH, 0)
    if height == 0 or width == 0:
        raise _damaged(f"its size is {width} x {height} pixels")
    orientation = single.get(_ORIENTATION, 1)
    tile = single.get(_TILE_HEIGHT, 0) * single.get(_TILE_WIDTH, 0)
    return Header(height, width, orientation if 1 <= orientation <= 8 else 1, tile)


def _require_field(layout: _Layout, encoded: bytes, position: int, tag: int) -> None:
    """Raises for a field whose values are not in the file, or are too many to be read."""
    _, field_type, count = layout.read(layout.entry, encoded, position)
    if field_type not in _TYPE_BYTES or (count > _MOST_VALUES and tag not in _PIECES):
        raise _damaged(f"its field {tag} holds {count} values of type {field_type}")
    if tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT) and (count != 1 or field_type not in _INTEGERS):
        raise _damaged(f"its field {tag}, a length, holds {count} values of type {field_type}")
    size = count * _TYPE_BYTES[field_type]
    if size > layout.size(layout.offset):
        (offset,) = layout.read(layout.offset, encoded, position + layout.size(layout.entry))
        if offset + size > len(encoded):
            raise _damaged(f"its field {tag} lies behind the end of the file")


def _require_pieces(layout: _Layout, kept: list[bytes], single: Mapping[int, int]) -> None:
    """Raises where there are many more strips or tiles than the picture is made of: each one costs memory."""
    height, width = single[_HEIGHT], single[_WIDTH]
    tile_height, tile_width = single.get(_TILE_HEIGHT, 0), single.get(_TILE_WIDTH, 0)
    if tile_height and tile_width:
        needed = -(-height // tile_height) * -(-width // tile_width)
    else:
        needed = -(-height // max(1, single.get(_ROWS_PER_STRIP, height)))
    if single.get(_PLANES, 1) == 2:
        needed *= min(single.get(_SAMPLES, 1), 16)
    given = [layout.read(layout.entry, entry, 0) for entry in kept]
    most = max([count for tag, _, count in given if tag in _PIECES], default=0)
    if most > _MOST_PIECES:
        raise ImageError("unsupported", f"TIFF of {most} strips or tiles, at most {_MOST_PIECES} are read")
    if most > max(needed, 4096):
        raise _damaged(f"it tells of {most} strips or tiles, its picture has {needed}")


def _damaged(how: str) -> ImageError:
    return ImageError("unreadable", f"damaged TIFF: {how}")
