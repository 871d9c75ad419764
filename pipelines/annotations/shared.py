"""Columns that a run publishes for its other machines: read from the annotation file once, whatever machines there are.

FOLDER/index.json    uri of an annotation file -> key of its columns
FOLDER/KEY/          the columns' files, the information last
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from maskrcnn_core.data.coco.columns import INFO_FILE, AnnotationColumns, open_columns
from maskrcnn_core.errors import StorageError
from pipelines import storage
from pipelines.annotations import cache

_INDEX = "index.json"
_READ_BYTES = 1 << 22


def publish_columns(folder: str, columns: Mapping[str, AnnotationColumns]) -> None:
    """Make the columns of annotation files, by uri, known to all machines of a run; those in memory are left out.

    Raises:
        StorageError: the folder cannot be written to.
    """
    keys = {uri: one.folder for uri, one in columns.items() if one.folder is not None}
    for local in set(keys.values()):
        target = storage.join(folder, local.name)
        if storage.exists(storage.join(target, INFO_FILE)):
            continue
        files = sorted(local.iterdir(), key=lambda file: file.name == INFO_FILE)
        for file in files:
            _put(file, storage.join(target, file.name))
    if keys:
        index = {uri: local.name for uri, local in keys.items()}
        storage.write_bytes_atomically(storage.join(folder, _INDEX), json.dumps(index).encode())


def shared_columns(folder: str, uri: str) -> AnnotationColumns | None:
    """The columns that were published for an annotation file, memory-mapped from this machine's cache, into which the
    first process that asks brings them; None where there are none.

    Raises:
        StorageError: they cannot be read.
    """
    index = storage.join(folder, _INDEX)
    if not storage.exists(index):
        return None
    key = json.loads(storage.read_bytes(index)).get(uri)
    if key is None:
        return None

    def fetch(partial: Path) -> str:
        source = storage.join(folder, key)
        files = storage.list_files(source)
        if not files:
            raise StorageError(f"{source}: no files; remove {index}, and the run makes them again")
        for file in files:
            _get(file, partial / file.rsplit("/", 1)[-1])
        return str(key)

    return open_columns(str(cache.found(key) or cache.made((key,), fetch)), opened_by=(_reopened, (folder, uri)))


def _reopened(folder: str, uri: str) -> AnnotationColumns:
    """What another process makes of columns that were sent to it."""
    columns = shared_columns(folder, uri)
    if columns is None:
        raise StorageError(f"{storage.join(folder, _INDEX)}: has no columns of {uri} any more; start the run again")
    return columns


def _put(file: Path, uri: str) -> None:
    filesystem, path = storage.filesystem_and_path(uri)
    with storage.naming(uri):
        if storage.is_local(uri):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(file, Path(path))
            return
        with file.open("rb") as source, filesystem.open_output_stream(path) as target:
            while piece := source.read(_READ_BYTES):
                target.write(piece)


def _get(uri: str, file: Path) -> None:
    if storage.is_local(uri):
        _link_or_copy(Path(storage.filesystem_and_path(uri)[1]), file)
        return
    with storage.open_stream(uri) as read, file.open("wb") as target:
        while piece := read(_READ_BYTES):
            target.write(piece)


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name of the file where both lie on one file system; nobody changes what it holds."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    shutil.copyfile(source, target)
