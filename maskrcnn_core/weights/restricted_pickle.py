"""Pickle files of other frameworks, read without running anything that lies in them.

A pickle is a program: it names functions and calls them. Of all names only those by which numpy and torch write arrays
are known here, and what they stand for is our own code, so that a hostile file can do no more than fail. detectron2's
model zoo publishes such files: `{"model": {name: array}}`.
"""

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn_core.errors import CheckpointError

_KINDS = ("f", "i", "u", "b")
_BYTE_ORDERS = ("<", ">", "|", "=")
_NUMPY_CORES = ("numpy.core", "numpy._core")  # the second since numpy 2


class PickledArray:
    """A numpy array as its pickle describes it; `tensor` makes it real."""

    __slots__ = ("_dtype", "_fortran", "_raw", "_shape")

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = (0,)
        self._dtype = np.dtype(np.float32)
        self._fortran = False
        self._raw: Any = b""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, fortran=bool(fortran))

    def fill(self, raw: Any, dtype: Any, shape: Any, *, fortran: bool) -> None:
        """Take the array's bytes (or Python 2's text) after making sure that they fit its shape."""
        if not isinstance(dtype, _PickledDType):
            raise pickle.UnpicklingError("an array without a data type")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        kind, shape = dtype.dtype(), tuple(int(side) for side in shape)
        fits = min(shape, default=0) >= 0 and isinstance(raw, bytes | bytearray)
        if not fits or len(raw) != math.prod(shape) * kind.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} whose bytes do not fill it")
        self._shape, self._dtype, self._fortran, self._raw = shape, kind, fortran, raw

    def tensor(self) -> Tensor:
        """The array's values, in a copy."""
        flat = np.frombuffer(self._raw, self._dtype)
        values = flat.reshape(self._shape, order="F" if self._fortran else "C")
        return torch.from_numpy(np.array(values, dtype=self._dtype.newbyteorder("="), order="C", ndmin=0))


class _PickledDType:
    """`numpy.dtype("f4")` and the like; no records, no objects."""

    __slots__ = ("_order", "_spec")

    def __init__(self, spec: Any) -> None:
        self._spec, self._order = str(spec), "="

    def __setstate__(self, state: Any) -> None:
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array of records")
        self._order = str(state[1])

    def dtype(self) -> np.dtype[Any]:
        kind, size = self._spec[:1], self._spec[1:]
        if kind not in _KINDS or size not in ("1", "2", "4", "8") or self._order not in _BYTE_ORDERS:
            raise pickle.UnpicklingError(f"an array of data type {self._spec}")
        return np.dtype(self._order + self._spec)


class _Callable:
    """A function that a pickle may call. An instance without attributes, so that no pickle can alter it."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        raise NotImplementedError


class _MakeArray(_Callable):
    """`_reconstruct(type, shape, type code)`: the state follows."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> PickledArray:
        return PickledArray()


class _MakeArrayFromBuffer(_Callable):
    """`_frombuffer(bytes, dtype, shape, order)`, protocol 5."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> PickledArray:
        raw, dtype, shape, order = arguments
        array = PickledArray()
        array.fill(bytes(raw), dtype, shape, fortran=order == "F")
        return array


class _MakeScalar(_Callable):
    """`scalar(dtype, bytes)`."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        dtype, raw = arguments
        array = PickledArray()
        array.fill(raw, dtype, (), fortran=False)
        return array.tensor().item()


class _MakeDType(_Callable):
    """`dtype(spec, align, copy)`."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> _PickledDType:
        return _PickledDType(arguments[0])


class _Encode(_Callable):
    """`encode(text, "latin1")`: how protocols up to 2 write bytes."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> bytes:
        text, encoding = arguments
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
        return text.encode("latin1")


class _NoBytes(_Callable):
    """`bytes()`: how protocols up to 2 write bytes of length zero."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> bytes:
        if arguments:
            raise pickle.UnpicklingError("bytes made from other objects")
        return b""


class _MakeTensor(_Callable):
    """`_rebuild_tensor_v2(storage, offset, shape, strides, ...)`."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Tensor:
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, torch.TypedStorage):
            raise pickle.UnpicklingError("a tensor without storage")
        offset, shape, strides = int(offset), tuple(map(int, shape)), tuple(map(int, strides))
        if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
            raise pickle.UnpicklingError(f"a tensor of shape {shape} with strides {strides}")
        last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
        memory = storage._untyped_storage
        if math.prod(shape) > 0 and last >= memory.nbytes() // storage.dtype.itemsize:
            raise pickle.UnpicklingError(f"a tensor of shape {shape} that reaches past its storage")
        flat = torch.empty(0, dtype=storage.dtype).set_(memory)
        return flat.as_strided(shape, strides, offset).clone()


class _LoadStorage(_Callable):
    """`_load_from_bytes(bytes)`: torch's own file format inside the pickle."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        return torch.load(io.BytesIO(bytes(arguments[0])), map_location="cpu", weights_only=True)


_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _Encode(),
    ("__builtin__", "bytes"): _NoBytes(),
    ("numpy", "dtype"): _MakeDType(),
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
    **{(f"{core}.multiarray", "_reconstruct"): _MakeArray() for core in _NUMPY_CORES},
    **{(f"{core}.multiarray", "scalar"): _MakeScalar() for core in _NUMPY_CORES},
    **{(f"{core}.numeric", "_frombuffer"): _MakeArrayFromBuffer() for core in _NUMPY_CORES},
    ("torch._utils", "_rebuild_tensor_v2"): _MakeTensor(),
    ("torch.storage", "_load_from_bytes"): _LoadStorage(),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ADMITTED:
            raise _Refused(f"{module_name}.{global_name}")
        return _ADMITTED[module_name, global_name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a reference to something outside the file")


class _Refused(Exception):
    """The file names something that is not admitted."""


def load_pickle(path: Path | str) -> object:
    """Dictionaries, lists, numbers, texts, tensors and arrays (as `PickledArray`) in a pickle file.

    Python 2's pickles are read too (their texts as latin1).

    Raises:
        CheckpointError: the file is damaged, or names anything but tensors and arrays; nothing of it was run.
    """
    try:
        with Path(path).open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except _Refused as error:
        raise CheckpointError(
            f"{path}: refused, it names {error}, expected arrays, tensors and plain values only; nothing of it was "
            'run. If you trust its origin, load it there and save the arrays alone: pickle.dump({"model": {name: '
            "array}}, file)"
        ) from error
    except Exception as error:  # a damaged or hostile pickle fails in any way
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: not readable as a pickle of arrays ({reason}); it is damaged, cut short or of another kind: "
            "copy it again"
        ) from error


def tensors_of(content: Mapping[Any, object]) -> dict[str, Tensor] | None:
    """A mapping of arrays as tensors by name; None where it holds anything else or nothing."""
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, PickledArray):
            tensors[str(name)] = value.tensor()
        elif isinstance(value, Tensor):
            tensors[str(name)] = value
        else:
            return None
    return tensors or None
