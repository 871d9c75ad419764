"""Bytes of files that lie in a local folder or behind a URI such as s3://bucket/folder.

Names of images come from outside, and may name anything: what is read of a local one is a regular file, and of that no
more than it had when it was opened, so that no pipe, device or endless file holds anybody up. A name that is no UTF-8
has a URI all the same, file:// with its bytes as %-codes.
"""

import functools
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote_to_bytes

import pyarrow as pa
import pyarrow.fs

from maskrcnn_core.errors import StorageError

MOST_IMAGE_BYTES = 2 << 30
"""No image that can be decoded has a larger file."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FILE_TYPES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class TooManyBytes(OSError):
    """A file is larger than is read."""


def read_bytes(path: str) -> bytes:
    """The whole file at a local path or URI.

    Raises:
        StorageError: missing or unreadable.
    """
    try:
        if "://" not in path:
            return Path(path).read_bytes()
        filesystem, inner = pyarrow.fs.FileSystem.from_uri(path)
        with filesystem.open_input_file(inner) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        raise StorageError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: cannot be read ({error}); check the path and your right to read it") from None


def has_scheme(name: str) -> bool:
    """Whether a name begins as `scheme://`."""
    return _SCHEME.match(name) is not None


def located(folder: str, name: str) -> str:
    """Where a file lies that an annotation file or table names: at `name` itself where that is absolute or has a
    scheme, else below the folder."""
    if name.startswith("/") or has_scheme(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if folder.rstrip("/") else folder + name


def local_path(uri: str) -> str:
    """The path that file:// stands for; any other text as it is."""
    if not uri.startswith("file://"):
        return uri
    path = uri.removeprefix("file://")
    return os.fsdecode(unquote_to_bytes(path[path.index("/") :] if "/" in path else ""))


def uri_of(path: str) -> str:
    """The URI of a local absolute path: the path, or file:// with %-codes where its bytes are no UTF-8 text, which
    is what records are made of. A name that no file can have comes back with escapes."""
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        pass
    try:
        return f"file://{quote(os.fsencode(path))}"
    except UnicodeEncodeError:
        return path.encode("utf-8", "backslashreplace").decode()


def read_local(path: str, most_bytes: int = MOST_IMAGE_BYTES) -> bytes:
    """The content of a regular file of this machine.

    Raises:
        OSError: FileNotFoundError where there is none, TooManyBytes where it is larger than `most_bytes`.
    """
    with _opened(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        require_bytes(size, most_bytes)
        return stream.read(size) or b""


def read_local_range(path: str, offset: int, length: int) -> bytes:
    """Bytes of a regular file of this machine from an offset on; fewer where it ends before.

    Raises:
        OSError: FileNotFoundError where there is none.
    """
    with _opened(path) as stream:
        stream.seek(offset)
        return stream.read(length) or b""


def _opened(path: str) -> BinaryIO:
    try:
        _require_regular(os.stat(path))  # before it is opened: that alone makes some devices act
        # In case it is another by now. A pipe is opened without a writer, and what would wait is empty.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError:
        raise OSError("no file can have this name") from None
    stream = open(handle, "rb")  # noqa: SIM115 (closed by the caller)
    try:
        _require_regular(os.fstat(handle))
    except OSError:
        stream.close()
        raise
    return stream


def require_bytes(size: int, most_bytes: int) -> None:
    """Raises TooManyBytes where a file is larger than is read."""
    if size > most_bytes:
        raise TooManyBytes(f"the file has {size} bytes, at most {most_bytes} are read")


def read_image_file(uri: str) -> bytes:
    """The content of the file at a local path, file:// or s3:// URI.

    Raises:
        OSError: FileNotFoundError where there is none, others whatever it is that keeps it from being read.
    """
    if not has_scheme(uri) or uri.startswith("file://"):
        return read_local(local_path(uri))
    if not uri.startswith("s3://"):
        scheme = uri.partition("://")[0]
        raise OSError(f"{scheme}:// is not read, expected a local path, file:// or s3://; copy the file")
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return _read_remote(f"s3://{bucket}", key)


class Folder:
    """A local folder or the URI of one, to read files of; the connection is made at the first read of each process."""

    def __init__(self, location: str) -> None:
        self.location = location

    def path(self, name: str) -> str:
        """Where the file `name` lies."""
        return located(self.location, name)

    def read(self, name: str) -> bytes:
        """The bytes of the file `name`, relative to the folder unless it is absolute or has a scheme.

        Raises:
            OSError: FileNotFoundError where there is none, others whatever it is that keeps it from being read.
        """
        if has_scheme(self.location) and not self.location.startswith("file://") and self.path(name) != name:
            return _read_remote(self.location, name)
        if self.path(name) != name:
            return read_local(os.path.join(local_path(self.location), name))
        return read_image_file(name)


def _require_regular(state: os.stat_result) -> None:
    file_type = next((name for is_type, name in _FILE_TYPES if is_type(state.st_mode)), None)
    if file_type is not None:
        raise OSError(f"it is {file_type}, expected a regular file")


def _read_remote(folder: str, name: str) -> bytes:
    try:
        filesystem, root = _remote(folder, os.getpid())
        with filesystem.open_input_file(f"{root.rstrip('/')}/{name}") as stream:
            require_bytes(stream.size(), MOST_IMAGE_BYTES)
            return bytes(stream.read())
    except (ValueError, pa.ArrowException) as error:  # a name that Arrow does not take, as one with an empty part
        raise OSError(str(error)) from None


@functools.lru_cache(maxsize=16)
def _remote(folder: str, process: int) -> tuple[Any, str]:
    """The process only tells connections apart: they do not survive a fork."""
    filesystem, root = pyarrow.fs.FileSystem.from_uri(folder)
    return filesystem, str(root)
