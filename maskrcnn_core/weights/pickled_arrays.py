"""Arrays and tensors as pickles describe them, made real on demand and only after their sizes are found to be true."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from maskrcnn_core.weights.budget import Budget, FileFault
from maskrcnn_core.weights.pickle_machine import Maker, Named, Unbuilt

_KINDS = ("f", "i", "u", "b")
_BYTE_ORDERS = ("<", ">", "|", "=")
_NUMPY_CORES = ("numpy.core", "numpy._core")  # the second since numpy 2
_MAX_DIMENSIONS = 16

STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}
"""torch's classes of memory, by name, and what lies in them."""
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in STORAGE_TYPES.values()}


def _shape_of(sides: Any) -> tuple[int, ...]:
    """A shape (or strides), which files write as tuples of numbers and nothing else."""
    plain = isinstance(sides, tuple | list) and len(sides) <= _MAX_DIMENSIONS
    if not plain or not all(type(side) is int and 0 <= side < 1 << 63 for side in sides):
        raise FileFault("an array's shape is no list of whole numbers")
    return tuple(sides)


class PickledArray:
    """A numpy array as its pickle describes it, before anything of that is looked at."""

    __slots__ = ("_described",)

    def __init__(self, *described: Any) -> None:
        self._described = described

    def take_state(self, state: Any) -> None:
        """The state that follows `_reconstruct`: (version, shape, dtype, whether in Fortran's order, bytes)."""
        self._described = state[1:] if isinstance(state, tuple) else ()

    def tensor(self, budget: Budget) -> Tensor:
        """The array's values, in a copy that the budget pays for.

        Raises:
            FileFault: the bytes (or Python 2's text) do not fill the shape, or are no numbers.
        """
        if len(self._described) != 4:
            raise FileFault("an array without shape and bytes")
        shape, described, fortran, raw = self._described
        if not isinstance(described, PickledDType):
            raise FileFault("an array without a data type")
        dtype, shape = described.dtype(), _shape_of(shape)
        if not isinstance(raw, bytes | bytearray | str) or len(raw) != math.prod(shape) * dtype.itemsize:
            raise FileFault(f"an array of shape {list(shape)} whose bytes do not fill it")
        budget.spend_bytes(len(raw))
        flat = np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, dtype)
        values = flat.reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.array(values, dtype=dtype.newbyteorder("="), order="C", ndmin=0))


class PickledDType:
    """`numpy.dtype("f4")` and the like."""

    __slots__ = ("_order", "_plain", "_spec")

    def __init__(self, spec: Any) -> None:
        self._spec, self._order, self._plain = spec if isinstance(spec, str) else "", "=", True

    def take_state(self, state: Any) -> None:
        """Byte order; what follows is of records."""
        plain = isinstance(state, tuple) and len(state) >= 5
        self._plain = plain and all(part is None for part in state[2:5])
        self._order = state[1] if plain and isinstance(state[1], str) else ""

    def dtype(self) -> np.dtype[Any]:
        """The real one.

        Raises:
            FileFault: records, objects, texts, dates, complex numbers.
        """
        kind, size = self._spec[:1], self._spec[1:]
        if not self._plain or kind not in _KINDS or size not in ("1", "2", "4", "8") or self._order not in _BYTE_ORDERS:
            raise FileFault(f"an array of data type {self._spec[:20] or 'unknown'}")
        return np.dtype(self._order + self._spec)


class Storages(Protocol):
    """Where the memory of a file's tensors lies."""

    def read(self, storage: "Storage") -> bytes | bytearray | memoryview:
        """All bytes of one."""


@dataclass(frozen=True)
class Storage:
    """Memory of tensors.

    Attributes:
        key: its name in the file.
        class_name: torch's name of its class.
        dtype: what lies in it; None = bytes of any kind.
        count: how many values.
        file: where it lies.
        start: for a part of another one, the first value in that.
    """

    key: str
    class_name: str
    dtype: torch.dtype | None
    count: int
    file: Storages
    start: int = 0


@dataclass(frozen=True)
class PickledTensor:
    """A tensor as its pickle describes it, before any of its values is read."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def tensor(self, budget: Budget) -> Tensor:
        """Its values, in a copy that the budget pays for.

        Raises:
            FileFault: it says more values than its memory has, or reaches past it.
        """
        number, size = math.prod(self.shape), self.dtype.itemsize
        if number == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        last = self.offset + sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True))
        held = self.storage.count if self.storage.dtype is not None else self.storage.count // size
        if last >= held:
            raise FileFault(f"a tensor of shape {list(self.shape)} that reaches past its storage of {held} values")
        if number > held:
            raise FileFault(f"a tensor of shape {list(self.shape)} that repeats the {held} values of its storage")
        budget.spend_bytes(number * size)
        first = (self.storage.start + self.offset) * size
        length = (last - self.offset + 1) * size
        raw = memoryview(self.storage.file.read(self.storage))[first : first + length]
        if len(raw) != length:
            raise FileFault(f"the storage {self.storage.key} is cut short")
        budget.spend_bytes(length)
        flat = torch.frombuffer(bytearray(raw), dtype=self.dtype)
        return flat.as_strided(self.shape, self.strides).clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Unusable:
    """A tensor of a kind that no weights are read from."""

    kind: str

    def tensor(self, budget: Budget) -> Tensor:
        """Never."""
        raise FileFault(f"a {self.kind} tensor, expected a plain one with values")


Leaf = PickledArray | PickledTensor | Unusable


def _array(arguments: tuple[Any, ...]) -> PickledArray:
    """`_reconstruct(type, shape, type code)`: the state follows."""
    return PickledArray()


def _array_of_buffer(arguments: tuple[Any, ...]) -> PickledArray:
    """`_frombuffer(bytes, dtype, shape, order)`, protocol 5."""
    raw, dtype, shape, order = arguments
    return PickledArray(shape, dtype, order == "F", raw)


def _scalar(arguments: tuple[Any, ...]) -> Any:
    """`scalar(dtype, bytes)`; one that is no plain number stays as it is described."""
    dtype, raw = arguments
    array = PickledArray((), dtype, False, raw)
    try:
        return array.tensor(Budget.of_file(0)).item()
    except FileFault:
        return array


def _dtype(arguments: tuple[Any, ...]) -> PickledDType:
    """`dtype(spec, align, copy)`."""
    return PickledDType(arguments[0])


def _tensor_of(storage: Any, offset: Any, shape: Any, strides: Any, dtype: torch.dtype | None = None) -> "Leaf":
    if not isinstance(storage, Storage):
        return Unusable("storageless")
    shape, strides = _shape_of(shape), _shape_of(strides)
    if len(shape) != len(strides) or type(offset) is not int or offset < 0:
        return Unusable("damaged")
    value_type = dtype or storage.dtype
    return (
        Unusable(storage.class_name)
        if value_type is None
        else PickledTensor(storage, value_type, offset, shape, strides)
    )


def _tensor(arguments: tuple[Any, ...]) -> Leaf:
    """`_rebuild_tensor_v2(storage, offset, shape, strides, ...)`, also its first version."""
    return _tensor_of(*arguments[:4])


def _tensor_of_bytes(arguments: tuple[Any, ...]) -> Leaf:
    """`_rebuild_tensor_v3(storage, offset, shape, strides, requires_grad, hooks, dtype, metadata)`."""
    storage, offset, shape, strides, _, _, dtype = arguments[:7]
    value_type = _DTYPES.get(dtype.name) if isinstance(dtype, Named) and dtype.module == "torch" else None
    return Unusable(str(dtype)) if value_type is None else _tensor_of(storage, offset, shape, strides, value_type)


def _first_argument(arguments: tuple[Any, ...]) -> Any:
    """`_rebuild_parameter(data, ...)`: a parameter is a tensor."""
    return arguments[0]


def _typed_tensor(arguments: tuple[Any, ...]) -> Any:
    """`_rebuild_from_type_v2(function, type, arguments, state)`: a tensor with attributes."""
    function, _, inner = arguments[:3]
    maker = TENSOR_MAKERS.get((function.module, function.name)) if isinstance(function, Named) else None
    return Unbuilt(str(function)) if maker is None or not isinstance(inner, tuple) else maker(inner)


def _unusable(kind: str) -> Maker:
    return lambda _: Unusable(kind)


TENSOR_MAKERS: Mapping[tuple[str, str], Maker] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_bytes,
    ("torch._utils", "_rebuild_parameter"): _first_argument,
    ("torch._utils", "_rebuild_parameter_with_state"): _first_argument,
    ("torch._tensor", "_rebuild_from_type_v2"): _typed_tensor,
    ("torch._utils", "_rebuild_sparse_tensor"): _unusable("sparse"),
    ("torch._utils", "_rebuild_nested_tensor"): _unusable("nested"),
    ("torch._utils", "_rebuild_qtensor"): _unusable("quantised"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _unusable("meta"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _unusable("foreign device's"),
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _unusable("foreign device's"),
    ("torch._utils", "_rebuild_wrapper_subclass"): _unusable("wrapped"),
}
"""What torch makes tensors by."""

ARRAY_MAKERS: Mapping[tuple[str, str], Maker] = {
    ("numpy", "dtype"): _dtype,
    **{(f"{core}.multiarray", "_reconstruct"): _array for core in _NUMPY_CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _NUMPY_CORES},
    **{(f"{core}.numeric", "_frombuffer"): _array_of_buffer for core in _NUMPY_CORES},
}
"""What numpy makes arrays by."""
