"""Files of `torch.save`, both of its formats, read without torch's own reader: nothing that they name is built.

Since torch 1.6 a file is a zip archive, never compressed: NAME/data.pkl describes the objects and NAME/data/KEY is the
memory of a tensor. Before, it was five pickles in a row (a magic number, the protocol, the system, the objects, the
keys of the storages) and behind them the storages in the order of the keys.
"""

import io
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from maskrcnn_core.weights.budget import Budget, FileFault
from maskrcnn_core.weights.pickle_machine import Named, Reader, Unbuilt
from maskrcnn_core.weights.pickled_arrays import STORAGE_TYPES, Storage

ZIP_START = b"PK\x03\x04"
FORM_BYTES = 32
"""How much of a file's beginning tells its form."""
_OLD_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the end of the first pickle: the magic number

_MAX_DIRECTORY = 1 << 24
_COUNT_BYTES = 8


def is_old_torch(start: bytes) -> bool:
    """Whether a file begins as those of `torch.save` before 1.6, of any protocol."""
    return start.startswith(b"\x80") and _OLD_TORCH in start[:FORM_BYTES]


ReadPickle = Callable[[Reader, Callable[[Any], Any] | None], Any]


class _BoundedFile:
    """A file for `zipfile`, which reads the archive's directory at once: no more than a checkpoint can need."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.limit = _MAX_DIRECTORY

    def seekable(self) -> bool:
        return True

    def read(self, number: int = -1) -> bytes:
        if number > self.limit:
            raise FileFault(f"a zip archive with a directory of {number:,} bytes")
        return self._file.read(number)


class _ZipStorages:
    """Records of a zip archive; the last one read is kept, as several tensors may lie in one."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, size: int, budget: Budget) -> None:
        self._archive, self._folder, self._size, self._budget = archive, folder, size, budget
        self._names = {info.filename: info for info in archive.infolist()}
        self._last: tuple[str, bytes] = ("", b"")
        self._swapped = self._small("byteorder") == b"big"

    def _small(self, name: str) -> bytes:
        return self.record(name) if self._folder + name in self._names else b""

    def record(self, name: str) -> bytes:
        """The bytes of one.

        Raises:
            FileFault: it is missing, compressed or longer than the file.
        """
        info = self._names.get(self._folder + name)
        if info is None:
            raise FileFault(f"{name} is missing in it")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise FileFault(f"{name} is compressed in it, as torch never does")
        if info.file_size > self._size:
            raise FileFault(f"{name} would be longer than the file")
        self._budget.spend_bytes(info.file_size)
        return self._archive.read(info)

    def read(self, storage: Storage) -> bytes:
        """The memory of a storage, in this machine's byte order."""
        if self._last[0] != storage.key:
            raw = self.record(f"data/{storage.key}")
            if self._swapped and storage.dtype is not None:
                raw = np.frombuffer(raw, f"u{storage.dtype.itemsize}").byteswap().tobytes()
            self._last = (storage.key, raw)
        return self._last[1]


def read_zip(file: BinaryIO, size: int, budget: Budget, read_pickle: ReadPickle) -> Any:
    """What a file of today's `torch.save` describes; its tensors read from the file, which must stay open.

    Raises:
        FileFault: it is none.
        zipfile.BadZipFile, OSError, ...: it is damaged.
    """
    bounded = _BoundedFile(file)
    archive = zipfile.ZipFile(bounded)
    bounded.limit = size
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        arrays = bool(names) and all(name.endswith(".npy") for name in names)
        raise FileFault("it is a zip archive of " + ("numpy arrays (.npz)" if arrays else "another program"))
    storages = _ZipStorages(archive, pickles[0].removesuffix("data.pkl"), size, budget)
    described = storages.record("data.pkl")

    def persistent(pid: Any) -> Any:
        return _storage_of(pid, storages) or Unbuilt("something outside of the file")

    return read_pickle(Reader(io.BytesIO(described), len(described)), persistent)


class _OldStorages:
    """Storages behind the pickles of the older format."""

    def __init__(self, file: BinaryIO, size: int, budget: Budget) -> None:
        self._file, self._size, self._budget = file, size, budget
        self._item_sizes: dict[str, int] = {}
        self._extents: dict[str, tuple[int, int]] = {}
        self._last: tuple[str, bytes] = ("", b"")

    def expect(self, storage: Storage) -> None:
        """A tensor refers to this one."""
        unread = 4 if storage.class_name == "QInt32Storage" else 1
        self._item_sizes[storage.key] = unread if storage.dtype is None else storage.dtype.itemsize

    def find(self, keys: Any) -> None:
        """Where each lies: a count of values, then the values."""
        offset = self._file.tell()
        for key in keys if isinstance(keys, list) else ():
            self._budget.spend_step()
            if not isinstance(key, str) or key not in self._item_sizes:
                return  # its length cannot be known: what follows is out of reach
            self._file.seek(offset)
            length = int.from_bytes(self._file.read(_COUNT_BYTES), "little") * self._item_sizes[key]
            self._extents[key] = (offset + _COUNT_BYTES, length)
            offset += _COUNT_BYTES + length

    def read(self, storage: Storage) -> bytes:
        """The memory of a storage."""
        if self._last[0] != storage.key:
            offset, length = self._extents.get(storage.key, (self._size, 1))
            if offset + length > self._size:
                raise FileFault(f"its storage {storage.key} is missing or cut short")
            self._budget.spend_bytes(length)
            self._file.seek(offset)
            self._last = (storage.key, self._file.read(length))
        return self._last[1]


def read_old(file: BinaryIO, size: int, budget: Budget, read_pickle: ReadPickle) -> Any:
    """What a file of `torch.save` before 1.6 describes; its tensors read from the file, which must stay open.

    Raises:
        FileFault: it is damaged, or from a machine of another byte order.
    """
    reader, storages = Reader(file, size), _OldStorages(file, size, budget)
    read_pickle(reader, None)
    read_pickle(reader, None)
    system = read_pickle(reader, None)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise FileFault("it was written on a machine of another byte order; save it anew with a torch of today")

    def persistent(pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]  # a class, with its source text behind
        storage = _storage_of(pid, storages)
        if storage is None:
            return Unbuilt("something outside of the file")
        storages.expect(storage)
        return storage

    content = read_pickle(reader, persistent)
    storages.find(read_pickle(reader, None))
    return content


def _storage_of(pid: Any, file: Any) -> Storage | None:
    """`("storage", class, key, device, count)`, in the older format with a view `(key, offset, count)` behind."""
    if not isinstance(pid, tuple) or not 5 <= len(pid) <= 6 or pid[0] not in ("storage", b"storage"):
        return None
    _, storage_class, key, _, count, *view = pid
    if not isinstance(storage_class, Named) or not isinstance(key, str) or type(count) is not int or count < 0:
        return None
    start = 0
    if view and view[0] is not None:
        _, start, count = view[0]
        if type(start) is not int or type(count) is not int or start < 0:
            return None
    dtype = STORAGE_TYPES.get(storage_class.name)
    return Storage(key, storage_class.name, dtype, count, file, start)
