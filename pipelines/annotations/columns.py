"""The annotations that a uri names, as columns: made once, found again by the digest of the file.

A small file is read into memory by whoever needs it. A large one becomes a folder in the cache of the machine
(`cache`), memory-mapped by all of its processes; a run publishes it for its other machines (`shared`).
"""

import contextlib
import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pyarrow import fs

from maskrcnn_core.data.coco.columns import AnnotationColumns, open_columns
from maskrcnn_core.data.coco.conversion import SCORING, Reader
from maskrcnn_core.data.coco.json_columns import ConvertPieces, columns_of_json, convert_here
from maskrcnn_core.errors import AnnotationError, StorageError, UserError
from maskrcnn_core.inference.code_fingerprint import fingerprint_of
from pipelines import storage
from pipelines.annotations import cache
from pipelines.annotations.shards import read_shards, shards_digest
from pipelines.annotations.shared import shared_columns

SMALL_BYTES = 1 << 24
"""Of a file that every process reads into its own memory."""

TASKS_BYTES = 1 << 27
"""Of a file that is worth converting in tasks, where Ray is connected."""

_READ_BYTES = 1 << 22
_READINGS = ("maskrcnn_core.data.coco.json_columns", "maskrcnn_core.data.coco.shard_columns")


def annotation_columns(
    uri: str, reader: Reader, *, images: str = "", shared: str = "", convert: ConvertPieces = convert_here
) -> AnnotationColumns:
    """The columns of an annotation file.

    Args:
        uri: COCO file, or a folder of Parquet shards (`shard_columns`).
        reader: what is needed of its images; without `sizes` that are asked for, see `images`.
        images: folder of the pictures that `reader.sizes` looks at.
        shared: folder that a run publishes its columns in (`shared`); empty = none.
        convert: who converts the pieces of a large file.

    Raises:
        AnnotationError: the file is wrong; with its name.
        StorageError: it cannot be read.
    """
    if shared and (columns := shared_columns(shared, uri)) is not None:
        return columns
    try:
        if storage.is_folder(uri):
            return _made(shards_digest(uri), reader, images, functools.partial(read_shards, uri, reader))
        with _opened(uri) as file:
            if len(file.content) <= SMALL_BYTES:
                return columns_of_json(file.content, reader, source=uri)
            read = functools.partial(columns_of_json, file.content, reader, source=uri, convert=convert)
            return _made(file.digest(), reader, images, read)
    except AnnotationError as error:
        raise AnnotationError(f"{uri}: {error}") from None


def conversion() -> ConvertPieces:
    """Who converts the pieces of a large file for a driver: tasks, where it has joined a cluster; else itself."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():  # Ray is slow to load, and not always needed
        from pipelines.annotations.tasks import convert_in_tasks

        return convert_in_tasks
    return convert_here


def content_digest(uri: str) -> str:
    """SHA-256 of a file, 64 hexadecimal digits; looked up where it was read before and has not changed. Of a folder of
    shards that of what is stated about them (`shards.shards_digest`).

    Raises:
        StorageError: it cannot be read.
    """
    if storage.is_folder(uri):
        return shards_digest(uri)
    note = _note(uri)
    if known := _read_note(note):
        return known
    digest = hashlib.sha256()
    with storage.open_stream(uri) as read:
        while piece := read(_READ_BYTES):
            digest.update(piece)
    return _remember(note, digest.hexdigest())


def needs_tasks(uri: str) -> bool:
    """Whether a file is so large that tasks should convert it, and this machine has not seen it before."""
    try:
        if not uri or storage.size(uri) < TASKS_BYTES:
            return False
        digest = _read_note(_note(uri))
    except StorageError:
        return False  # whoever reads it says why
    return not digest or not any(cache.found(_key(digest, reader)) for reader in (Reader(), SCORING))


def _made(digest: str, reader: Reader, images: str, read: Callable[..., AnnotationColumns]) -> AnnotationColumns:
    """The columns of a folder of the cache; `read` makes them where they are not there, given `digest` and `folder`."""
    plain, by_pictures = _key(digest, reader), _key(digest, reader, images)
    for other in {_key(digest, one) for one in (Reader(), SCORING)} - {plain}:
        # Where every image has a name and a size, all readers see the same.
        if (folder := cache.found(other)) is not None and (columns := open_columns(str(folder))).info.is_plain:
            return columns

    def make(folder: Path) -> str:
        columns = read(digest=digest, folder=folder)
        return by_pictures if columns.info.sized_by_pictures else plain

    return open_columns(str(_with_room(lambda: cache.made((plain, by_pictures), make))))


def _with_room(make: Callable[[], Path]) -> Path:
    try:
        return make()
    except UserError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"{cache.root()}: columns of the annotations cannot be written there ({reason}); make room, or set "
            "MASKRCNN_CACHE to another folder"
        ) from None


def _key(digest: str, reader: Reader, images: str = "") -> str:
    """Of columns that this code makes for such readers, with sizes from pictures in a folder."""
    parts = [*map(fingerprint_of, _READINGS), digest, str(reader.names), str(bool(reader.sizes)), images]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


class _File:
    """A file on this machine.

    Attributes:
        uri: that it was read from.
        content: bytes, or what is sliced to bytes.
    """

    def __init__(self, uri: str, content: Any) -> None:
        self.uri, self.content = uri, content

    @functools.cache  # noqa: B019 - a file lives as long as the reading of it
    def digest(self) -> str:
        """SHA-256."""
        note = _note(self.uri)
        return _read_note(note) or _remember(note, _sha256(self.content))


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[_File]:
    """The file, where it is local; else a copy of it while the block runs."""
    if storage.size(uri) <= SMALL_BYTES:
        yield _File(uri, storage.read_bytes(uri))
    elif storage.is_local(uri):
        with open(storage.filesystem_and_path(uri)[1], "rb") as file:
            yield _File(uri, _Content(uri, file))
    else:
        with tempfile.NamedTemporaryFile(prefix="maskrcnn-annotations-", suffix=".json") as copy:
            with storage.open_stream(uri) as read:
                while piece := read(_READ_BYTES):
                    copy.write(piece)
            copy.flush()
            yield _File(uri, _Content(uri, copy))


class _Content:
    """Bytes of an open file, read as they are asked for: a mapped file that somebody cuts would end the process."""

    def __init__(self, uri: str, file: IO[bytes]) -> None:
        self._uri, self._descriptor = uri, file.fileno()
        self._size = os.fstat(self._descriptor).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        begin, end, _ = part.indices(self._size)
        pieces = []
        while begin < end and (piece := os.pread(self._descriptor, end - begin, begin)):
            pieces.append(piece)
            begin += len(piece)
        if begin < end:
            raise StorageError(f"{self._uri}: was cut while it was read; start again once it is whole")
        return b"".join(pieces)


def _sha256(content: Any) -> str:
    digest = hashlib.sha256()
    for begin in range(0, len(content), _READ_BYTES):
        digest.update(content[begin : begin + _READ_BYTES])
    return digest.hexdigest()


def _note(uri: str) -> Path | None:
    """Where the digest of the file is noted; None where its time does not tell whether it has changed."""
    filesystem, path = storage.filesystem_and_path(uri)
    with storage.naming(uri):
        info: fs.FileInfo = storage.patiently(uri, lambda: filesystem.get_file_info(path))
    if info.type != fs.FileType.File or info.mtime_ns is None:
        return None
    return cache.remembered(uri, info.size, info.mtime_ns)


def _read_note(note: Path | None) -> str:
    try:
        return "" if note is None else note.read_text()
    except OSError:
        return ""


def _remember(note: Path | None, digest: str) -> str:
    if note is not None:
        with contextlib.suppress(OSError):  # it is looked up no more than that
            storage.write_bytes_atomically(str(note), digest.encode())
    return digest
