"""Protocol buffers, and TensorFlow's graphs in them, written by hand."""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DTYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "float16": 19}
STRING = 7


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; a negative number as its two's complement of 64 bits."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def piece(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def fixed(field: int, value: float) -> bytes:
    return varint(field << 3 | 5) + struct.pack("<f", value)


def shape_of(sides: Sequence[int]) -> bytes:
    return b"".join(piece(2, number(1, side)) for side in sides)


def tensor(values: NDArray[np.generic]) -> bytes:
    """A TensorProto with `tensor_content`."""
    content = piece(4, values.tobytes()) if values.size else b""
    return number(1, DTYPES[str(values.dtype)]) + piece(2, shape_of(values.shape)) + content


def attribute(name: str, value: bytes) -> bytes:
    return piece(5, piece(1, name.encode()) + piece(2, value))


def node(name: str, operation: str, inputs: Sequence[str] = (), attributes: bytes = b"") -> bytes:
    """A node of a GraphDef, as one of its fields."""
    named = piece(1, name.encode()) + piece(2, operation.encode())
    return piece(1, named + b"".join(piece(3, each.encode()) for each in inputs) + attributes)


def constant(name: str, message: bytes) -> bytes:
    """A Const node with this TensorProto."""
    return node(name, "Const", attributes=attribute("dtype", number(6, 1)) + attribute("value", piece(8, message)))
