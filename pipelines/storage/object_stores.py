"""Objects of S3, Google Cloud Storage and Azure, each read with one request: many at once, in threads of the caller.

    s3://BUCKET/KEY             credentials, profiles, endpoint and region as boto3 finds them
    gs://BUCKET/KEY             GOOGLE_APPLICATION_CREDENTIALS, gcloud's login, the machine's service account
    az://CONTAINER/KEY          the account in AZURE_STORAGE_ACCOUNT_NAME; AZURE_STORAGE_ACCOUNT_KEY and its like
    abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY, abfs://CONTAINER/KEY

obstore sends the requests, outside of Python's lock. `storage.max_attempts` and the time limits hold for all of them.
"""

import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

from maskrcnn_core.errors import StorageError
from pipelines.storage.files import naming
from pipelines.storage.object_requests import STORES, content, kind_of, naming_answers, patience
from pipelines.storage.s3_buckets import open_bucket
from pipelines.storage.s3_client import read_s3_object
from pipelines.storage.s3_listing import S3Object
from pipelines.storage.s3_settings import Limits, StoreError, error_code, explain, limits

# Variables that obstore reads, and that say whom is asked by whom.
_DECIDING = (
    *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_BASE_URL"),
    *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT", "AZURE_STORAGE_USE_EMULATOR"),
)

_connecting = threading.Lock()


def is_object(uri: str) -> bool:
    """Whether a uri names an object of a store that is read here."""
    return "://" in uri and uri.partition("://")[0] in STORES


def is_beside_s3(uri: str) -> bool:
    """Whether a uri names an object of another store than S3: such are read and listed here, and nowhere else."""
    return is_object(uri) and not uri.startswith("s3://")


def read_object(uri: str, most_bytes: int) -> bytes:
    """The content of an object, by one GET whose answer tells its size before the content is read.

    Raises:
        OSError: FileNotFoundError where there is none, TooManyBytes where it is larger than `most_bytes`, else
            StoreError.
        StorageError: the uri names no store, or its bucket's region cannot be found out.
    """
    scheme, container, key = _parts(uri)
    if not is_path(key) or not _can_read_here():
        if scheme == "s3":  # keys that obstore refuses or changes, and forked processes, where it waits for ever
            return read_s3_object(uri, most_bytes)
        raise OSError(f"objects of {STORES[scheme]} are not read by such names; expected no empty parts, . or ..")
    if scheme == "s3":
        return open_bucket(uri, container).read(uri, key, most_bytes)
    with naming_answers(scheme, key):
        return content(_other_store(scheme, container), key, most_bytes)


def read_object_range(uri: str, offset: int, length: int) -> bytes:
    """Bytes of an object of S3 from an offset on, by one GET; fewer where it ends before.

    Raises:
        OSError, StorageError: as `read_object`.
    """
    scheme, container, key = _parts(uri)
    if not length:
        return b""
    if scheme != "s3":
        raise OSError(f"parts of objects are read from S3 only, not from {STORES[scheme]}")
    if not is_path(key) or not _can_read_here():
        return read_s3_object(uri, length, offset)
    return open_bucket(uri, container).read(uri, key, length, offset)


def _parts(uri: str) -> tuple[str, str, str]:
    """Scheme, container and key of a uri.

    Raises:
        StorageError: the scheme is another, or the container is missing.
    """
    scheme, _, rest = uri.partition("://")
    container, _, key = rest.partition("/")
    if scheme not in STORES:
        raise StorageError(
            f"{uri}: scheme {scheme}:// is not supported; expected a local path or s3://bucket/key, or of images "
            "gs://bucket/key, az://container/key or abfs://container/key"
        )
    if not container:
        raise StorageError(f"{uri}: the bucket is missing; expected {scheme}://bucket/key")
    return scheme, container, key


def is_path(key: str) -> bool:
    """Whether a key is one that a path can be: obstore refuses `a//b`, `..` and control characters, and drops a slash
    at either end."""
    return not (any(part in ("", ".", "..") for part in key.split("/")) or any(c < " " or c == "\x7f" for c in key))


def _can_read_here() -> bool:
    return _first_process() == os.getpid()


@functools.cache
def _first_process() -> int:
    """The process that read first. obstore's threads do not come along to one that is forked of it."""
    return os.getpid()


def list_objects(uri: str, at_once: int = 1000) -> Iterator[list[S3Object]]:
    """The objects below a prefix of a store beside S3, at most `at_once` at a time, in no order; keys are whole.

    Raises:
        StorageError: the prefix cannot be listed.
    """
    import obstore

    scheme, container, key = _parts(uri)
    with naming(uri), naming_answers(scheme, key):
        store = _other_store(scheme, container)
        for some in obstore.list(store, prefix=key.strip("/") or None, chunk_size=at_once):
            yield [S3Object(one["path"], int(one["size"]), (one["e_tag"] or "").strip('"')) for one in some]


def object_exists(uri: str) -> bool:
    """Whether a uri of a store beside S3 names an object, or a prefix that holds some.

    Raises:
        StorageError: the store cannot be asked.
    """
    import obstore

    scheme, container, key = _parts(uri)
    try:
        with naming_answers(scheme, key):
            obstore.head(_other_store(scheme, container), key.strip("/"))
            return True
    except FileNotFoundError:
        return is_prefix(uri)
    except OSError as error:
        raise StorageError(f"{uri}: {explain(error_code(error, uri)) or error}") from error


def is_prefix(uri: str) -> bool:
    """Whether a uri of a store beside S3 names a prefix that holds objects.

    Raises:
        StorageError: it cannot be listed.
    """
    return bool(next(list_objects(uri, at_once=1), []))


def _other_store(scheme: str, container: str) -> Any:
    from obstore.exceptions import BaseError

    try:
        with _connecting:
            return _connected(scheme, container, limits(), tuple(os.environ.get(name) for name in _DECIDING))
    except BaseError as error:  # as a file of credentials that is not there
        raise StoreError(f"{kind_of(scheme)}:Settings", str(error).partition("\n\n")[0]) from None


@functools.lru_cache(maxsize=256)
def _connected(scheme: str, container: str, limits: Limits, who: tuple[str | None, ...]) -> Any:
    """One client, with its pool of connections, for each of the settings in force; `who` only tells them apart."""
    from obstore.store import AzureStore, GCSStore

    config: dict[str, Any] = {"skip_signature": True} if limits.anonymous else {}
    if scheme == "gs":
        return GCSStore(container, config=config, **patience(limits))
    container, _, host = container.partition("@")
    if host:
        config["account_name"] = host.partition(".")[0]
    return AzureStore(container, config=config, **patience(limits))
