"""The checkpoints that a run resumes from: whole or not there, the newest first.

RESUME/step-00000030/...             files of the checkpoint of step 30
RESUME/step-00000030/manifest.json   sizes and SHA-256 of these files, written after all of them

Locally the folder appears by a rename. On S3, which has none, a folder without a manifest is not a checkpoint. What
rotted or was cut off in spite of that is found by the manifest when it is read, and the checkpoint before it is used.

Why not Ray Train's own (`ray.train.report(checkpoint=...)`, Ray 2.60): it trusts a list that it keeps beside them. A
list that is torn, because its writer was killed, or that names a checkpoint which was set aside, refuses the run for
good. After a torn checkpoint the same step is saved again under the same name: the list then has it twice, and
`num_to_keep` deletes the new one with the old.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from maskrcnn_core.errors import StorageError
from pipelines import storage

MANIFEST_NAME = "manifest.json"
_PREFIX, _UNFINISHED = "step-", ".unfinished-"
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class StoredCheckpoint:
    """One that has a manifest.

    Attributes:
        step: steps done.
        uri: its folder.
    """

    step: int
    uri: str


def list_checkpoints(root: str) -> list[StoredCheckpoint]:
    """Those with a manifest, newest first; what they hold has not been looked at."""
    if not storage.is_folder(root):
        return []
    filesystem, path = storage.filesystem_and_path(root)
    names = [Path(info.path).name for info in filesystem.get_file_info(fs.FileSelector(path))]
    steps = sorted((int(name[len(_PREFIX) :]) for name in names if _is_name(name)), reverse=True)
    checkpoints = [StoredCheckpoint(step, storage.join(root, _name(step))) for step in steps]
    return [checkpoint for checkpoint in checkpoints if storage.exists(storage.join(checkpoint.uri, MANIFEST_NAME))]


def store_checkpoint(folder: Path, root: str, step: int, *, keep: int = 2) -> StoredCheckpoint:
    """Move a local folder to its place in the store, and drop the oldest ones.

    Args:
        folder: complete; gone afterwards. A rename suffices where it lies on the file system of a local `root`.
        root: the store.
        step: steps done.
        keep: how many stay.

    Raises:
        StorageError: the store cannot be written.
    """
    uri = storage.join(root, _name(step))
    manifest = _manifest_of(folder)
    if storage.is_local(root):
        (folder / MANIFEST_NAME).write_text(manifest)
        _move_into_place(folder, Path(storage.filesystem_and_path(uri)[1]))
    else:
        _upload(folder, uri, manifest)
    stored = list_checkpoints(root)
    for old in stored[keep:]:
        _delete(old.uri)
    return StoredCheckpoint(step, uri)


@contextlib.contextmanager
def opened(checkpoint: StoredCheckpoint) -> Iterator[Path]:
    """The checkpoint as a local folder: its own, or a copy that lives as long as the block.

    Raises:
        StorageError: a file is missing or is not what the manifest says.
    """
    with contextlib.ExitStack() as stack:
        if storage.is_local(checkpoint.uri):
            folder = Path(storage.filesystem_and_path(checkpoint.uri)[1])
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="maskrcnn-checkpoint-")))
            _download(checkpoint.uri, folder)
        _verify(folder, checkpoint.uri)
        yield folder


@contextlib.contextmanager
def newest_intact(root: str, faults: list[str]) -> Iterator[tuple[StoredCheckpoint, Path] | None]:
    """The newest checkpoint that holds what its manifest says, with its local folder; None where there is none.

    Args:
        root: the store.
        faults: gets a line for each checkpoint that was passed over.
    """
    with contextlib.ExitStack() as stack:
        for checkpoint in list_checkpoints(root):
            try:
                folder = stack.enter_context(opened(checkpoint))
            except StorageError as error:
                faults.append(str(error))
                continue
            yield checkpoint, folder
            return
        yield None


def _is_name(name: str) -> bool:
    return name.startswith(_PREFIX) and name[len(_PREFIX) :].isdigit()


def _name(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


def _files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _manifest_of(folder: Path) -> str:
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in _files_of(folder)
    }
    return json.dumps({"files": files}, indent=2)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def _verify(folder: Path, uri: str) -> None:
    try:
        files = json.loads((folder / MANIFEST_NAME).read_text())["files"]
        for name, expected in files.items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else -1
            if size != expected["bytes"]:
                got = "is missing" if size < 0 else f"has {size} bytes"
                raise StorageError(f"{uri}/{name}: {got}, expected {expected['bytes']} bytes; the checkpoint is torn")
            if _digest(path) != expected["sha256"]:
                raise StorageError(f"{uri}/{name}: other content than when it was written; the checkpoint is damaged")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{uri}/{MANIFEST_NAME}: cannot be read ({error}); the checkpoint is torn") from error


def _move_into_place(folder: Path, target: Path) -> None:
    for name in (*_files_of(folder), "."):
        _flush_to_disk(folder / name)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{_UNFINISHED}{target.name}-{uuid.uuid4().hex}")
    shutil.move(folder, unfinished)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    _flush_to_disk(target.parent)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _upload(folder: Path, uri: str, manifest: str) -> None:
    marker = storage.join(uri, MANIFEST_NAME)
    if storage.exists(marker):  # the same step again: the old one must not vouch for the new files
        _delete(uri)
    for name in _files_of(folder):
        copy_file(folder / name, storage.join(uri, name))
    storage.write_bytes_atomically(marker, manifest.encode())
    shutil.rmtree(folder)


def _download(uri: str, folder: Path) -> None:
    filesystem, remote = storage.filesystem_and_path(uri)
    try:
        fs.copy_files(remote, str(folder), source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
    except OSError as error:
        raise StorageError(f"{uri}: cannot be read: {error}") from error


def copy_file(path: Path, uri: str) -> None:
    """Copy a local file to a uri.

    Raises:
        StorageError: the uri cannot be written.
    """
    filesystem, remote = storage.filesystem_and_path(uri)
    try:
        if storage.is_local(uri):
            Path(remote).parent.mkdir(parents=True, exist_ok=True)
        fs.copy_files(str(path), remote, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)
    except OSError as error:
        raise StorageError(f"{uri}: cannot be written: {error}") from error


def _delete(uri: str) -> None:
    """Its manifest first, so that a half-deleted folder is no checkpoint."""
    filesystem, path = storage.filesystem_and_path(uri)
    with contextlib.suppress(OSError):
        filesystem.delete_file(f"{path}/{MANIFEST_NAME}")
    with contextlib.suppress(OSError):
        filesystem.delete_dir(path)
