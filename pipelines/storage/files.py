"""Files on this machine or on S3 behind one set of functions.

A *uri* is a local path (absolute, relative to the working directory, or with ~), `file:///...` or `s3://bucket/key`.
S3 credentials, region and endpoint come from where AWS tools take them (AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT_URL, ~/.aws, instance roles). The settings `storage.*` travel as environment variables too, so that every
process of a job sees them. Throttling, dropped connections and time-outs are tried again with growing pauses.
"""

import contextlib
import errno
import functools
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from maskrcnn_core.data.files import TooManyBytes, local_path
from maskrcnn_core.errors import StorageError, UserError
from pipelines.storage.s3_client import create_object, naming_s3, s3_client, why_denied
from pipelines.storage.s3_settings import Limits, error_code, explain, is_forbidden, is_hopeless, limits

_Result = TypeVar("_Result")

# On top of the S3 client's own retries, which stop after `storage.max_attempts`.
_ATTEMPTS = 4
_PAUSE_SECONDS = 0.5

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def is_local(uri: str) -> bool:
    """Whether the uri names a file or folder of this machine."""
    return "://" not in uri or uri.startswith("file://")


def filesystem_and_path(uri: str) -> tuple[fs.FileSystem, str]:
    """The Arrow file system of a uri and the path within it.

    Local paths come out absolute, because Ray's workers have working directories of their own.

    Raises:
        StorageError: the uri is empty, its scheme is neither local nor s3, or the S3 bucket is missing in it.
    """
    if not uri:
        raise StorageError("the path is empty; expected a file or folder, or s3://bucket/key")
    if is_local(uri):
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(local_path(uri)))
    scheme, rest = uri.split("://", 1)
    if scheme != "s3":
        raise StorageError(f"{uri}: scheme {scheme}:// is not supported; expected a local path or s3://bucket/key")
    path = rest.strip("/")
    if not path:
        raise StorageError(f"{uri}: the bucket is missing; expected s3://bucket/key")
    with naming(uri):
        return _s3_filesystem(path.split("/", 1)[0]), path


def below(uri: str, folder: str) -> bool:
    """Whether the uri names something in the folder, or deeper, whatever `..` it holds."""
    if is_local(uri) != is_local(folder):
        return False
    if is_local(uri):
        root = filesystem_and_path(folder)[1]
        return filesystem_and_path(uri)[1].startswith(f"{root.rstrip('/')}/")
    return uri.startswith(f"{folder.rstrip('/')}/")  # `..` is a name as any other in S3's keys


def absolute(uri: str) -> str:
    """The uri as every process understands it, whatever folder it works in."""
    return str(filesystem_and_path(uri)[1]) if is_local(uri) else uri.rstrip("/")


def absolute_or_empty(uri: str | None) -> str:
    """`absolute` of a setting that may be left out."""
    return absolute(uri) if uri else ""


def _s3_filesystem(bucket: str) -> fs.FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return _connected(bucket, region, endpoint, limits(), os.environ.get("AWS_ACCESS_KEY_ID", ""), os.getpid())


@functools.lru_cache(maxsize=16)
def _connected(bucket: str, region: str, endpoint: str, limits: Limits, key: str, process: int) -> fs.FileSystem:
    """One client, with its pool of connections, for each bucket and setting; the key and process only tell them
    apart."""
    options = {
        "connect_timeout": limits.connect_timeout,
        "request_timeout": limits.request_timeout,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=limits.max_attempts),
        **({"anonymous": True} if limits.anonymous else {}),
    }
    if endpoint:  # Arrow's constructor, unlike boto3, does not look at the variable
        scheme, _, host = endpoint.rstrip("/").rpartition("://")
        return fs.S3FileSystem(
            endpoint_override=host, scheme=scheme or "https", region=region or "us-east-1", **options
        )
    return fs.S3FileSystem(region=region or fs.resolve_s3_region(bucket), **options)


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts appended, as a uri."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Whether the uri names a file or a folder (on S3 a prefix that holds something)."""
    return bool(_file_type(uri) != fs.FileType.NotFound)


def is_folder(uri: str) -> bool:
    """Whether the uri names a folder (on S3 a prefix that holds something)."""
    return bool(_file_type(uri) == fs.FileType.Directory)


def patiently(uri: str, action: Callable[[], _Result]) -> _Result:
    """What `action` gives, which reads `uri`; on S3 it is tried again where that may help.

    The client's own retries end where an answer has begun: a connection that breaks in the middle of an object is an
    error at once.

    Raises:
        OSError: its last one; at once where there is no such object, or no right to read it.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except (FileNotFoundError, IsADirectoryError, TooManyBytes):
            raise
        except OSError as error:
            code = error_code(error, uri)
            if is_local(uri) or is_forbidden(code) or is_hopeless(code) or attempt + 1 == _ATTEMPTS:
                raise
        time.sleep(_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def read_bytes(uri: str) -> bytes:
    """The whole content of a file.

    Raises:
        StorageError: there is no such file, or it cannot be read.
    """
    filesystem, path = filesystem_and_path(uri)

    def read() -> bytes:
        with filesystem.open_input_file(path) as stream:
            content: bytes = stream.read()
        return content

    with naming(uri):
        return patiently(uri, read)


@contextlib.contextmanager
def open_stream(uri: str) -> Iterator[Callable[[int], bytes]]:
    """A file read from its start in pieces, inside the block: a function from a number of bytes to the next ones.

    Raises:
        StorageError: there is no such file, or it cannot be read.
    """
    filesystem, path = filesystem_and_path(uri)
    with naming(uri):
        stream = filesystem.open_input_stream(path)
    with stream:

        def read(length: int) -> bytes:
            with naming(uri):
                content: bytes = stream.read(length)
            return content

        yield read


def size(uri: str) -> int:
    """Bytes of a file; 0 where there is none, or a folder."""
    filesystem, path = filesystem_and_path(uri)
    with naming(uri):
        return patiently(uri, lambda: filesystem.get_file_info(path)).size or 0


def write_bytes_atomically(uri: str, content: bytes) -> None:
    """Write a file so that readers see either all of it or what was there before; folders are made as needed.

    Locally through a temporary file beside it and a rename; an S3 object appears whole by itself.

    Raises:
        StorageError: the place cannot be written.
    """
    _, path = filesystem_and_path(uri)
    with _naming_written(uri):
        if is_local(uri):
            _replace_local_file(Path(path), content)
        else:
            # One PUT: Arrow's stream would upload in parts, and complete even what was broken off.
            bucket, _, key = path.partition("/")
            with naming_s3(uri):
                s3_client().put_object(Bucket=bucket, Key=key, Body=content)


def create_bytes(uri: str, content: bytes) -> bool:
    """Write a file that is not there yet; False, and nothing written, where there is one. Of several processes that try
    at once, one succeeds.

    Raises:
        StorageError: the place cannot be written.
    """
    _, path = filesystem_and_path(uri)
    with _naming_written(uri):
        if is_local(uri):
            return _create_local_file(Path(path), content)
        bucket, _, key = path.partition("/")
        with naming_s3(uri):
            return create_object(bucket, key, content)


def _create_local_file(path: Path, content: bytes) -> bool:
    """By a hard link, which fails where the name is taken; the file has all of its content when it appears."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        _write_through(temporary, content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: almost as good
            if path.exists():
                return False
            replace_file(temporary, path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _write_through(path: Path, content: bytes) -> None:
    """A new file, on the disk when this returns."""
    for _ in range(_ATTEMPTS - 1):  # a process that gives its own start up deletes folders that are empty
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return _write_new(path, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_new(path, content)


def _write_new(path: Path, content: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _replace_local_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        _write_through(temporary, content)
        replace_file(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def delete_torn_files(uri: str) -> None:
    """Delete what writers that died left half-written in a folder; S3 objects appear whole or not at all.

    A writer that still lives fails with "no such file" when it commits: call this when none is wanted any more.
    """
    if is_local(uri):
        for temporary in Path(filesystem_and_path(uri)[1]).glob(".*.tmp"):
            temporary.unlink(missing_ok=True)


def replace_file(temporary: Path, path: Path) -> None:
    """Commit: the finished file takes its name."""
    temporary.replace(path)


def list_files(uri: str, suffix: str | tuple[str, ...] = "") -> list[str]:
    """Uris of all files below a folder, at any depth, sorted by name; hidden files (`.name`) are left out.

    Args:
        uri: the folder.
        suffix: ending or endings that a file's name must have, such as `.parquet`; upper and lower case count alike.

    Raises:
        StorageError: there is no such folder.
    """
    return sorted(file_sizes(uri, suffix))


def file_sizes(uri: str, suffix: str | tuple[str, ...] = "") -> dict[str, int]:
    """Bytes of each of the files of `list_files`, by uri; costs the same one listing."""
    filesystem, path = filesystem_and_path(uri)
    with naming(uri):
        folder_info = patiently(uri, lambda: filesystem.get_file_info(path))
        if folder_info.type != fs.FileType.Directory:
            what = "no such folder" if folder_info.type == fs.FileType.NotFound else "is a file; expected a folder"
            raise StorageError(f"{uri}: {what}")
        infos = patiently(uri, lambda: filesystem.get_file_info(fs.FileSelector(path, recursive=True)))
    endings = tuple(ending.lower() for ending in ((suffix,) if isinstance(suffix, str) else suffix))
    prefix = "" if is_local(uri) else "s3://"
    return {
        prefix + info.path: info.size
        for info in infos
        if info.type == fs.FileType.File
        and info.base_name.lower().endswith(endings)
        and not info.base_name.startswith(".")
    }


def delete_file(uri: str) -> None:
    """Delete a file; one that is not there is fine."""
    filesystem, path = filesystem_and_path(uri)
    with naming(uri), contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(path)


def delete_folder(uri: str) -> None:
    """Delete a folder and all that is in it; one that is not there is fine."""
    filesystem, path = filesystem_and_path(uri)
    with naming(uri):
        filesystem.delete_dir_contents(path, missing_dir_ok=True)
        if not is_local(uri):
            _delete_mark(uri, path)
        elif os.path.isdir(path):
            filesystem.delete_dir(path)


def _delete_mark(uri: str, path: str) -> None:
    """Arrow leaves an object that says that the folder is there, though empty."""
    bucket, _, key = path.partition("/")
    with naming_s3(uri):
        s3_client().delete_object(Bucket=bucket, Key=f"{key}/")


def delete_if_empty(uri: str) -> None:
    """Delete a local folder that holds nothing; S3 has no empty folders."""
    if is_local(uri):
        with contextlib.suppress(OSError):  # it holds something, or is not there
            os.rmdir(filesystem_and_path(uri)[1])


def _file_type(uri: str) -> fs.FileType:
    filesystem, path = filesystem_and_path(uri)
    with naming(uri):
        return patiently(uri, lambda: filesystem.get_file_info(path)).type


@contextlib.contextmanager
def naming(uri: str) -> Iterator[None]:
    """Turn what the operating system or S3 reports into a StorageError that names the uri."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise StorageError(f"{uri}: no such file") from error
    except IsADirectoryError as error:
        raise StorageError(f"{uri}: is a folder; expected a file") from error
    except PermissionError as error:
        raise StorageError(f"{uri}: permission denied; check the rights of the file") from error
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise StorageError(
                f"{uri}: No space left on device; make room, and the same command goes on where it stopped"
            ) from error
        if is_local(uri) and os.path.isdir(filesystem_and_path(uri)[1]):  # Arrow's error for a folder has no type
            raise StorageError(f"{uri}: is a folder; expected a file") from error
        code = error_code(error, uri)
        code = why_denied(uri) if is_forbidden(code) and not is_local(uri) else code
        if (reason := explain(code)) is not None:
            raise StorageError(f"{uri}: {reason}") from error
        raise StorageError(f"{uri}: cannot be read or written: {error}") from error
    except (ValueError, pa.ArrowException) as error:  # a name that Arrow does not take, as one with a NUL in it
        raise StorageError(f"{uri}: cannot be read or written: {error}; check the name") from error


@contextlib.contextmanager
def _naming_written(uri: str) -> Iterator[None]:
    """As `naming`, for a local file that is to be written: what is missing then is no file."""
    with naming(uri):
        try:
            yield
        except OSError as error:
            if not is_local(uri) or isinstance(error, IsADirectoryError) or error.errno in _NO_ROOM:
                raise
            raise StorageError(f"{uri}: cannot be written: {error.strerror or error}; choose another place") from error
