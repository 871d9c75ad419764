"""Whether a place can be written, asked before the work whose result it is to hold."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from botocore.exceptions import ClientError

from maskrcnn_core.errors import StorageError
from pipelines import storage
from pipelines.storage.s3_client import naming_s3, s3_client


def require_writable(uri: str, name: str = "output") -> None:
    """Make sure that a file can be written; nothing is left of trying.

    Args:
        uri: of the file; folders that are missing will be made with it.
        name: of the setting, for the message.

    Raises:
        StorageError: it cannot, or a folder is there.
    """
    _require_text(uri, name)
    path = storage.filesystem_and_path(uri)[1]
    if not storage.is_local(uri):
        if storage.is_folder(uri):
            raise StorageError(f"{name}: {uri!r} is a folder; expected the name of a file")
        _try_upload(uri, path)
        return
    try:
        if Path(path).is_dir():
            raise StorageError(f"{name}: {uri!r} is a folder; expected the name of a file")
        _try_new_file(Path(path))
    except OSError as error:
        raise StorageError(f"{name}: {uri!r} cannot be written: {error.strerror}; choose another place") from error


def _require_text(uri: str, name: str) -> None:
    if "\0" in uri:
        raise StorageError(f"{name}: {uri!r} holds a NUL; expected the name of a file or folder")


def require_writable_folder(uri: str, name: str = "output") -> None:
    """Make sure that files can be written into a folder, which may be missing; as `require_writable`."""
    _require_text(uri, name)
    if storage.is_local(uri):
        is_file = os.path.lexists(path := storage.filesystem_and_path(uri)[1]) and not os.path.isdir(path)
    else:
        is_file = storage.exists(uri) and not storage.is_folder(uri)
    if is_file:
        raise StorageError(f"{name}: {uri!r} is a file; expected the name of a folder")
    require_writable(storage.join(uri, ".writable"), name)


def _try_new_file(path: Path) -> None:
    """A file without a name, in the nearest folder above that is there."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(0, f"{folder} is a file")
    for part in path.relative_to(folder).parts:
        if len(os.fsencode(part)) > os.pathconf(folder, "PC_NAME_MAX"):
            raise OSError(0, f"{part[:20]!r}... is too long a name")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(0, f"{folder} takes no new files ({error.strerror})") from error


def _try_upload(uri: str, path: str) -> None:
    """An upload that is begun and given up: it needs the same right as a whole one, and leaves no object. To give it up
    needs a right of its own, without which the bucket's rules clear it away."""
    bucket, _, key = path.partition("/")
    with storage.naming(uri), naming_s3(uri):
        upload = s3_client().create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        with suppress(ClientError):
            s3_client().abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
