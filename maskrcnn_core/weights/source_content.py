"""The content of another framework's file of weights, whatever its format: plain values, arrays and tensors by name.

What is neither stays a description (`Unbuilt`) by the name of its class. Values of tensors are read when asked for.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.printable import printable
from maskrcnn_core.weights.budget import Budget, FileFault
from maskrcnn_core.weights.frozen_graph import constants, is_graph
from maskrcnn_core.weights.pickle_machine import Maker, Named, Reader, Unbuilt, run_pickle
from maskrcnn_core.weights.pickled_arrays import ARRAY_MAKERS, TENSOR_MAKERS
from maskrcnn_core.weights.torch_files import FORM_BYTES, ZIP_START, is_old_torch, read_old, read_zip
from maskrcnn_core.weights.weight_manifest import is_manifest, read_manifest

_SAFETENSORS, _PICKLE = "safetensors", "a pickle of arrays"
_GRAPH, _MANIFEST = "a frozen graph of TensorFlow", "a manifest of TensorFlow.js's weights"
_PICKLE_START = b"\x80"
# Protocols 0 and 1 begin with the object itself: a dictionary or an OrderedDict.
_OLD_PICKLE_STARTS = (b"(d", b"}", b"ccollections", b"ccopy_reg")
_MAX_TEXT = 200


@contextlib.contextmanager
def open_content(path: Path, budget: Budget) -> Iterator[Any]:
    """The content of a file, by what it is rather than by its name; tensors can be read while the block lasts.

    Args:
        path: a file of `torch.save` (both formats), a plain pickle of arrays or tensors, safetensors, a frozen graph
            of TensorFlow, or a manifest of TensorFlow.js's weights, which lie beside it.
        budget: see `Budget.of_file`.

    Raises:
        CheckpointError: it is damaged or of another kind, also where that is found inside of the block.
    """
    form = "weights"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(FORM_BYTES)
            file.seek(0)
            form = _form(path, start, size)
            if form == _SAFETENSORS:
                yield safetensors.torch.load_file(path)
            elif form == _MANIFEST:
                yield read_manifest(path)
            elif form == _GRAPH:
                yield constants(memoryview(file.read()), budget)
            else:
                yield _PickledFile(budget).read(file, size, start)
    except CheckpointError:
        raise
    except MemoryError as error:
        raise CheckpointError(f"{path}: not readable: its tensors need more memory than there is") from error
    except Exception as error:  # what is damaged, or made to do harm, fails in any way
        reason = printable(str(error))[:_MAX_TEXT] or type(error).__name__
        damage = "damaged, cut short or of another kind" if form == _PICKLE else "damaged or cut short"
        raise CheckpointError(f"{path}: not readable as {form} ({reason}); it is {damage}: copy it again") from error


def _form(path: Path, start: bytes, size: int) -> str:
    """What the file is, by its first bytes.

    Raises:
        CheckpointError: nothing that is known.
    """
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size:
        return _SAFETENSORS
    if start.startswith(ZIP_START) or is_old_torch(start):
        return "a torch file"
    if start.startswith((_PICKLE_START, *_OLD_PICKLE_STARTS)):
        return _PICKLE
    if is_manifest(start):
        return _MANIFEST
    if is_graph(start):
        return _GRAPH
    if start == b"":
        raise CheckpointError(f"{path}: not readable, it is empty: copy it again")
    raise CheckpointError(
        f"{path}: refused, it is no torch file, pickle of arrays, safetensors, frozen graph or manifest of weights: it "
        f"begins with {start[:8]!r}; expected a .pth, .pkl, .safetensors, .pb or .json file"
    )


class _PickledFile:
    """One file, and what the functions that it may name stand for."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._depth = 0
        self._known: Mapping[tuple[str, str], Maker] = {
            **TENSOR_MAKERS,
            **ARRAY_MAKERS,
            ("collections", "OrderedDict"): _mapping,
            ("_codecs", "encode"): self._encoded,
            ("torch", "Size"): _first,
            ("torch.storage", "_load_from_bytes"): self._inner_file,
            ("copy_reg", "_reconstructor"): _object_of,
            ("copyreg", "_reconstructor"): _object_of,
            **{(module, "bytes"): _no_bytes for module in ("builtins", "__builtin__")},
            **{(module, name): _items for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
        }

    def read(self, file: BinaryIO, size: int, start: bytes) -> Any:
        if start.startswith(ZIP_START):
            return read_zip(file, size, self._budget, self._pickle)
        if is_old_torch(start):
            return read_old(file, size, self._budget, self._pickle)
        return self._pickle(Reader(file, size), None)

    def _pickle(self, reader: Reader, persistent: Any) -> Any:
        return run_pickle(reader, self._known, self._budget, persistent)

    def _inner_file(self, arguments: tuple[Any, ...]) -> Any:
        """`_load_from_bytes(bytes)`: a storage in torch's own format, inside of a pickle."""
        (raw,) = arguments
        if self._depth > 0 or not isinstance(raw, bytes | bytearray):
            raise FileFault("it has files inside of files inside of it")
        self._budget.spend_bytes(len(raw))
        self._depth += 1
        try:
            return self.read(io.BytesIO(raw), len(raw), bytes(raw[:FORM_BYTES]))
        finally:
            self._depth -= 1

    def _encoded(self, arguments: tuple[Any, ...]) -> Any:
        """`encode(text, "latin1")`: how protocols up to 2 write bytes."""
        text, encoding = arguments
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            return Unbuilt("_codecs.encode")
        self._budget.spend_bytes(len(text))
        return text.encode("latin1")


def _mapping(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """`OrderedDict()`; Python 2 gives its items as a list of pairs."""
    pairs = arguments[0] if arguments else []
    return {key: value for key, value in pairs if isinstance(key, str)}


def _first(arguments: tuple[Any, ...]) -> Any:
    return arguments[0]


def _items(arguments: tuple[Any, ...]) -> list[Any]:
    """A set, as a list."""
    return list(arguments[0]) if arguments and isinstance(arguments[0], list | tuple) else []


def _no_bytes(arguments: tuple[Any, ...]) -> Any:
    """`bytes()`: how protocols up to 2 write bytes of length zero."""
    return Unbuilt("bytes") if arguments else b""


def _object_of(arguments: tuple[Any, ...]) -> Unbuilt:
    """`_reconstructor(class, base, state of the base)`: how protocols 0 and 1 write objects."""
    object_class, _, state = arguments
    return Unbuilt(
        str(object_class) if isinstance(object_class, Named) else "unnamed", state if isinstance(state, dict) else {}
    )
