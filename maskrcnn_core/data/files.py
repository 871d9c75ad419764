"""Bytes of files that lie in a local folder or behind a URI such as s3://bucket/folder."""

from pathlib import Path
from typing import Any

import pyarrow.fs

from maskrcnn_core.errors import StorageError


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


class Folder:
    """A local folder or the URI of one, to read files of; the connection is made at the first read of each process."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._remote: tuple[Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "_remote": None}

    def path(self, name: str) -> str:
        """Where the file `name` lies, for messages."""
        return f"{self.location.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """The bytes of the file `name`, relative to the folder.

        Raises:
            OSError: FileNotFoundError where there is none, others as the file system has them.
        """
        if "://" not in self.location:
            return (Path(self.location) / name).read_bytes()
        if self._remote is None:
            self._remote = pyarrow.fs.FileSystem.from_uri(self.location)
        filesystem, root = self._remote
        with filesystem.open_input_file(f"{root.rstrip('/')}/{name}") as stream:
            return bytes(stream.read())
