"""Images in folders of this machine and what it mounts."""

import contextlib
import os
import re
from collections.abc import Iterator

from maskrcnn_core.data.files import uri_of
from maskrcnn_core.errors import StorageError
from pipelines import storage
from pipelines.images.parts import BATCH_ROWS, IMAGE_EXTENSIONS, Entries, Part, is_hidden
from pipelines.images.shards import shard_kind

# Sub-folders that are looked for before a folder is listed, to know how many tasks are worth it.
_MOST_LOCAL_PARTS = 256


def split_folder(top: str) -> tuple[list[str], list[str]]:
    """Folders to list without, and with, what is below them; together they cover `top`.

    Raises:
        StorageError: `top` cannot be listed.
    """
    shallow, deep = [], [top]
    walk = FolderWalk(top, top)
    _scanned(top)  # what cannot be listed below is left to whoever lists it
    while len(deep) < _MOST_LOCAL_PARTS // 4:
        below = [(folder, walk.subfolders(folder)) for folder in deep]
        if not any(children for _, children in below):
            break
        shallow += [folder for folder, _ in below]
        deep = [child for _, children in below for child in children]
        if not deep:
            break
    return shallow, deep


def local_entries(part: Part) -> Iterator[Entries]:
    """The images of a folder, or of what a glob names there, and a single file.

    Raises:
        StorageError: it cannot be listed.
    """
    if part.kind == "file":
        yield Entries([uri_of(storage.absolute(part.path))], sizes=[None])
        return
    pattern = re.compile(part.pattern, re.DOTALL) if part.pattern is not None else None
    uris: list[str] = []
    sizes: list[int | None] = []
    others = 0
    shards: list[Part] = []
    for path, size in _listed(part.path, part.recursive, FolderWalk(part.root, part.path)):
        if pattern is not None and not pattern.fullmatch(os.path.relpath(path, part.root)):
            continue
        if size is not None and (kind := shard_kind(path, part)) is not None:
            shards.append(Part(kind, path, root=os.path.dirname(path)))
            continue
        if size is not None and not path.lower().endswith(IMAGE_EXTENSIONS):
            others += 1
            continue
        uris.append(uri_of(path))
        sizes.append(size)
        if len(uris) == BATCH_ROWS:
            yield Entries(uris, sizes=sizes, others=others)
            uris, sizes, others = [], [], 0
    yield Entries(uris, sizes=sizes, others=others, left=tuple(shards))


class FolderWalk:
    """Folders below a top one, each of them once: a link to one that is listed under its own name is left out, and one
    that leads out is followed once, so that links that lead in circles come to an end.

    Args:
        top: the folder that everything is listed of.
        start: where this walk begins, in it.
    """

    def __init__(self, top: str, start: str) -> None:
        self._top = os.path.realpath(top)
        self._outside: set[tuple[int, int]] = set()  # folders that links have led to, by device and inode
        while not self._has_own_name(start):  # begun outside: it does not come back to where it came from
            with contextlib.suppress(OSError):
                self._is_new(os.stat(start))
            start = os.path.dirname(start)

    def subfolders(self, folder: str) -> list[str]:
        """The folders in a folder, without hidden ones; none where it cannot be listed."""
        try:
            return [entry.path for entry in _scanned(folder) if self.is_folder(entry)]
        except StorageError:
            return []

    def is_folder(self, entry: "os.DirEntry[str]") -> bool:
        """Whether an entry is a folder to be listed; to be asked once."""
        try:
            if not entry.is_dir() or (entry.is_symlink() and self._has_own_name(entry.path)):
                return False
            return (not self._outside and not entry.is_symlink()) or self._is_new(entry.stat())
        except OSError:  # a link to itself, or gone by now
            return False

    def _has_own_name(self, path: str) -> bool:
        """Whether what a path leads to is listed without any link."""
        parts = os.path.relpath(os.path.realpath(path), self._top).split("/")
        return parts[0] != ".." and not any(is_hidden(part) for part in parts)

    def _is_new(self, state: os.stat_result) -> bool:
        identity = state.st_dev, state.st_ino
        is_new = identity not in self._outside
        self._outside.add(identity)
        return is_new


def _scanned(folder: str) -> "list[os.DirEntry[str]]":
    """The entries of a folder without hidden ones, by name.

    Raises:
        StorageError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as scan:
            return sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise StorageError(f"images: cannot list {folder!r}: {error.strerror}") from error


def _listed(folder: str, recursive: bool, walk: FolderWalk) -> Iterator[tuple[str, int | None]]:
    """Path and size of the files below a folder, without hidden ones. A folder that cannot be listed comes itself,
    without a size: its images are not to be left out without a word."""
    try:
        entries = _scanned(folder)
    except StorageError:
        if os.path.isdir(folder):  # not gone by now
            yield folder, None
        return
    for entry in entries:
        if recursive and walk.is_folder(entry):
            yield from _listed(entry.path, True, walk)
            continue
        try:
            if not entry.is_file():  # a folder, a pipe, a link that leads nowhere
                continue
            size = entry.stat().st_size
        except OSError:  # a link to itself, or gone by now
            continue
        yield entry.path, size
