"""Google's protocol buffers as they lie in a file: fields by number, without generated code and without copies.

A message is a row of fields, each with a key (number and wire type) in front: a varint, 8 bytes, 4 bytes, or a length
and so many bytes, which are text, bytes, another message or numbers in a row ("packed"). The same number again is
another entry of a list. See protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from maskrcnn_core.weights.budget import Budget, FileFault

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_MAX_FIELD = (1 << 29) - 1

Value = int | memoryview
"""A varint as an unsigned number; anything else as its bytes, which are a part of the file."""


def read_fields(message: memoryview, budget: Budget) -> Iterator[tuple[int, Value]]:
    """The fields of a message in the file's order: number and value.

    Raises:
        FileFault: it is cut short, or no message; or it has more fields than the budget pays for.
    """
    position, end = 0, len(message)
    while position < end:
        budget.spend_step()
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if not 1 <= number <= _MAX_FIELD:
            raise FileFault(f"a field has number {number}")
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(message, position)
        elif wire_type in (_FIXED_64, _FIXED_32):
            length = 8 if wire_type == _FIXED_64 else 4
        else:
            raise FileFault(f"field {number} has wire type {wire_type}")
        if length > end - position:
            raise FileFault(f"field {number} would have {length:,} bytes where {end - position:,} are left")
        yield number, message[position : position + length]
        position += length


def as_bytes(value: Value) -> memoryview:
    """A value that has to be text, bytes or a message.

    Raises:
        FileFault: it is a number.
    """
    if isinstance(value, int):
        raise FileFault("a number where text or a message is expected")
    return value


def as_text(value: Value) -> str:
    """A value that has to be text.

    Raises:
        FileFault: it is a number, or no UTF-8.
    """
    try:
        return bytes(as_bytes(value)).decode()
    except UnicodeDecodeError as error:
        raise FileFault("a text that is no UTF-8") from error


def as_signed(value: Value) -> int:
    """A varint that has to be an int32 or int64.

    Raises:
        FileFault: it is no varint.
    """
    if not isinstance(value, int):
        raise FileFault("bytes where a whole number is expected")
    return value - (1 << 64) if value >> 63 else value


def packed_numbers(value: Value, dtype: str) -> NDArray[np.generic]:
    """Numbers of a fixed size, packed or a single one; a view of the file.

    Args:
        value: of the field.
        dtype: numpy's name of what lies there, such as `<f4`.

    Raises:
        FileFault: the bytes are no whole number of them.
    """
    raw = as_bytes(value)
    if len(raw) % np.dtype(dtype).itemsize:
        raise FileFault(f"{len(raw)} bytes where numbers of {np.dtype(dtype).itemsize} bytes are expected")
    return np.frombuffer(raw, dtype)


def packed_varints(value: Value, budget: Budget) -> Iterator[int]:
    """Whole numbers, packed or a single one.

    Raises:
        FileFault: they are cut short, or more than the budget pays for.
    """
    if isinstance(value, int):
        yield as_signed(value)
        return
    position = 0
    while position < len(value):
        budget.spend_step()
        number, position = _varint(value, position)
        yield as_signed(number)


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Seven bits a byte, lowest first; the highest bit says that another byte follows."""
    value = 0
    for index, byte in enumerate(message[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value & (1 << 64) - 1, position + index + 1
    raise FileFault("a number is cut short, or longer than 64 bits")
