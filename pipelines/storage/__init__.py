"""Files on this machine or on S3 behind one set of functions (`files`), and what else knows of storage."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.storage.files import (
        absolute,
        absolute_or_empty,
        below,
        create_bytes,
        delete_file,
        delete_folder,
        delete_if_empty,
        delete_torn_files,
        exists,
        file_sizes,
        filesystem_and_path,
        is_folder,
        is_local,
        join,
        list_files,
        naming,
        open_stream,
        patiently,
        read_bytes,
        replace_file,
        size,
        write_bytes_atomically,
    )

__all__ = [
    "absolute",
    "absolute_or_empty",
    "below",
    "create_bytes",
    "delete_file",
    "delete_folder",
    "delete_if_empty",
    "delete_torn_files",
    "exists",
    "file_sizes",
    "filesystem_and_path",
    "is_folder",
    "is_local",
    "join",
    "list_files",
    "naming",
    "open_stream",
    "patiently",
    "read_bytes",
    "replace_file",
    "size",
    "write_bytes_atomically",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: a command that only checks its settings imports `storage.config`, but not Arrow.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("pipelines.storage.files"), name)
