"""Tensors of the Open Inference Protocol: named arrays, and their bytes as Triton's binary extension has them."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.serving.problems import Problem

DTYPES = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class NamedTensor:
    """An output.

    Attributes:
        name: of it.
        datatype: `FP32`, `INT32`, `INT64` or `BYTES`.
        shape: of it.
        values: an array of that shape, or for BYTES as many pieces.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[np.generic] | Sequence[bytes]

    @classmethod
    def of_numbers(cls, name: str, values: NDArray[np.generic]) -> "NamedTensor":
        """Of an array whose type is one of `DTYPES`."""
        datatype = next(known for known, dtype in DTYPES.items() if values.dtype == dtype)
        return cls(name, datatype, values.shape, values)

    @classmethod
    def of_texts(cls, name: str, values: Sequence[str]) -> "NamedTensor":
        """Of texts, as BYTES."""
        return cls(name, "BYTES", (len(values),), [value.encode("utf-8", "replace") for value in values])

    def raw(self) -> bytes:
        """Row-major, little-endian; each piece of BYTES behind its length (4 bytes)."""
        if isinstance(self.values, np.ndarray):
            return self.values.tobytes()
        return b"".join(_LENGTH.pack(len(piece)) + piece for piece in self.values)

    def listed(self) -> list[object]:
        """Flat, as JSON has it; BYTES as texts."""
        if isinstance(self.values, np.ndarray):
            flat: list[object] = self.values.reshape(-1).tolist()
            return flat
        return [piece.decode("utf-8", "replace") for piece in self.values]


def pieces_of(raw: bytes, most: int) -> list[bytes]:
    """The pieces of a BYTES tensor.

    Raises:
        Problem: 400, they do not end where the bytes do; 413, more than `most`.
    """
    pieces: list[bytes] = []
    place = 0
    while place < len(raw):
        if len(pieces) == most:
            raise Problem(413, f"more than {most} images in one request")
        if place + _LENGTH.size > len(raw):
            raise Problem(400, "a BYTES tensor ends within the length of a piece")
        (length,) = _LENGTH.unpack_from(raw, place)
        place += _LENGTH.size
        if place + length > len(raw):
            raise Problem(400, "a BYTES tensor ends within a piece")
        pieces.append(raw[place : place + length])
        place += length
    return pieces


def num_elements(shape: Sequence[int]) -> int:
    """Of a tensor of this shape; negative sides count as none."""
    return math.prod(max(0, side) for side in shape)
