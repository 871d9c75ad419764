"""EXIF's orientation, byte by byte."""

import struct

import pytest

from maskrcnn_core.data.containers.header import read_orientation


def exif(order: str, kind: int, value: int) -> bytes:
    """A TIFF header and one entry: tag 274, type, count 1, value (3 = two bytes, 4 = four)."""
    start = {"<": b"II*\x00", ">": b"MM\x00*"}[order] + struct.pack(f"{order}I", 8)
    entry = struct.pack(f"{order}HHI", 0x0112, kind, 1) + struct.pack(f"{order}{'H' if kind == 3 else 'I'}", value)
    return start + struct.pack(f"{order}H", 1) + entry.ljust(12, b"\x00") + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "value", "expected"), [(3, 6, 6), (3, 0, 1), (3, 9, 1), (4, 6, 1)])
def test_only_a_short_from_1_to_8_is_an_orientation(order: str, kind: int, value: int, expected: int) -> None:
    # Of a type that EXIF does not allow, the two byte orders would not even agree on the value.
    assert read_orientation(exif(order, kind, value)) == expected
