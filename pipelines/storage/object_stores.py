"""Objects of S3, Google Cloud Storage and Azure, each read with one request: many at once, in threads of the caller.

    s3://BUCKET/KEY             credentials, profiles, endpoint and region as boto3 finds them
    gs://BUCKET/KEY             GOOGLE_APPLICATION_CREDENTIALS, gcloud's login, the machine's service account
    az://CONTAINER/KEY          the account in AZURE_STORAGE_ACCOUNT_NAME; AZURE_STORAGE_ACCOUNT_KEY and its like
    abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY, abfs://CONTAINER/KEY

obstore sends the requests, outside of Python's lock. `storage.max_attempts` and the time limits hold for all of them.
"""

import contextlib
import errno
import functools
import os
import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from pyarrow import fs

from maskrcnn_core.data.files import require_bytes
from maskrcnn_core.errors import StorageError
from pipelines.storage.files import naming
from pipelines.storage.s3_client import read_s3_object, s3_client
from pipelines.storage.s3_settings import Limits, S3Error, StoreError, limits

_STORES = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure", "abfs": "Azure", "abfss": "Azure"}

# A request is signed once, also for its retries, and a signature holds for 15 minutes.
_LONGEST_RETRIES = timedelta(minutes=14)
_LONGEST_REQUEST = timedelta(days=1)  # a large object on a slow line: what ends it is a wait for the next bytes

# boto3 renews what expires within 10 minutes; obstore asks again 5 minutes before this is over.
_CREDENTIALS_HOLD = timedelta(minutes=8)

_REASON = re.compile(r"Error performing \w+ (?P<url>\S+) in \S+(?:, after .*?retry_timeout: \S+)?\s+- (?P<reason>.*)")
_STATUS = re.compile(r"Server returned non-2xx status code: (?P<status>\d+)")
_CODE = re.compile(r"<Code>(?P<code>\w+)</Code>")
_PROVIDER = re.compile(r"External AWS credential provider: (?P<code>\w+)")

# What S3 answers where a bucket lies in another region than was asked.
_ELSEWHERE = {"BareRedirect", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_NO_CONTAINER = {"NoSuchBucket", "ContainerNotFound"}

_connecting = threading.Lock()


def is_object(uri: str) -> bool:
    """Whether a uri names an object of a store that is read here."""
    return uri.partition("://")[0] in _STORES and "://" in uri


def read_object(uri: str, most_bytes: int) -> bytes:
    """The content of an object, by one GET whose answer tells its size before the content is read.

    Raises:
        OSError: FileNotFoundError where there is none, TooManyBytes where it is larger than `most_bytes`, else
            StoreError.
        StorageError: the uri names no store, or its bucket's region cannot be found out.
    """
    scheme, _, rest = uri.partition("://")
    container, _, key = rest.partition("/")
    if scheme not in _STORES:
        raise StorageError(
            f"{uri}: scheme {scheme}:// is not supported; expected a local path or s3://bucket/key, or of images "
            "gs://bucket/key, az://container/key or abfs://container/key"
        )
    if not container:
        raise StorageError(f"{uri}: the bucket is missing; expected {scheme}://bucket/key")
    if _is_no_path(key) or not _can_read_here():
        if scheme == "s3":  # keys that obstore refuses or changes, and forked processes, where it waits for ever
            return read_s3_object(uri, most_bytes)
        raise OSError(f"objects of {_STORES[scheme]} are not read by such names; expected no empty parts, . or ..")
    if scheme == "s3":
        return _bucket(uri, container).read(uri, key, most_bytes)
    with _naming_answers(scheme, key):
        return _content(_other_store(scheme, container), key, most_bytes)


def _is_no_path(key: str) -> bool:
    """Whether a key is none that a path can be: obstore refuses `a//b`, `..` and control characters, and drops a slash
    at either end."""
    return any(part in ("", ".", "..") for part in key.split("/")) or any(c < " " or c == "\x7f" for c in key)


def _can_read_here() -> bool:
    return _first_process() == os.getpid()


@functools.cache
def _first_process() -> int:
    """The process that read first. obstore's threads do not come along to one that is forked of it."""
    return os.getpid()


def _content(store: Any, key: str, most_bytes: int) -> bytes:
    import obstore

    answer = obstore.get(store, key)
    require_bytes(int(answer.meta["size"]), most_bytes)
    return bytes(answer.bytes())


# ---- S3 --------------------------------------------------------------------------------------------------------------


def _bucket(uri: str, name: str) -> "_Bucket":
    given = os.environ.get
    endpoint = given("AWS_ENDPOINT_URL_S3") or given("AWS_ENDPOINT_URL") or ""
    region = given("AWS_REGION") or given("AWS_DEFAULT_REGION") or ""
    who = given("AWS_ACCESS_KEY_ID", ""), given("AWS_PROFILE", ""), given("AWS_SESSION_TOKEN", "")
    with _connecting, naming(uri):
        return _connected(name, region, endpoint, limits(), who)


@functools.lru_cache(maxsize=16)
def _connected(name: str, region: str, endpoint: str, limits: Limits, who: tuple[str, ...]) -> "_Bucket":
    """One client, with its pool of connections, for each bucket and setting; `who` only tells them apart."""
    return _Bucket(name, region, endpoint, limits)


class _Bucket:
    """A bucket of S3. Where it turns out to lie in another region than the settings say, it is asked there."""

    def __init__(self, name: str, region: str, endpoint: str, limits: Limits) -> None:
        import boto3

        self._name, self._endpoint, self._limits = name, endpoint, limits
        self._moving, self._has_moved = threading.Lock(), False
        with _naming_boto3():
            self._session = boto3.Session()
            credentials = None if limits.anonymous else self._session.get_credentials()
            is_aws = ".amazonaws.com" in self._endpoint_of("us-east-1")
        self._is_signed = credentials is not None
        self._store = self._store_in(region or (fs.resolve_s3_region(name) if is_aws else "us-east-1"))

    def read(self, uri: str, key: str, most_bytes: int) -> bytes:
        """As `read_object`."""
        try:
            return self._read(key, most_bytes)
        except S3Error as error:
            if error.code == "AccessDenied" and not self._is_signed and not self._limits.anonymous:
                raise S3Error("NoCredentialsError", f"unsigned, since no credentials were found: {error}") from None
            if error.code not in _ELSEWHERE:
                raise
        if self._has_moved_to_its_region():
            return self._read(key, most_bytes)
        return read_s3_object(uri, most_bytes)  # boto3 may know what else there is to follow

    def _read(self, key: str, most_bytes: int) -> bytes:
        with _naming_answers("s3", key):
            return _content(self._store, key, most_bytes)

    def _has_moved_to_its_region(self) -> bool:
        with self._moving:
            if not self._has_moved:
                region = _region_of(self._name)
                if region is None:
                    return False
                self._store, self._has_moved = self._store_in(region), True
            return True

    def _endpoint_of(self, region: str) -> str:
        """Where boto3 asks, which knows AWS's partitions and what ~/.aws/config says."""
        client = self._session.client("s3", region_name=region, endpoint_url=self._endpoint or None)
        return str(client.meta.endpoint_url)

    def _store_in(self, region: str) -> Any:
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store

        with _naming_boto3():
            endpoint = self._endpoint_of(region)
        # Both names, since what the environment says to the second one would go before the first.
        config = {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint, "region": region}
        if not self._is_signed:
            return S3Store(self._name, config={**config, "skip_signature": True}, **_patience(self._limits))
        provider = Boto3CredentialProvider(self._session, ttl=_CREDENTIALS_HOLD)
        return S3Store(self._name, config=config, credential_provider=provider, **_patience(self._limits))


def _region_of(bucket: str) -> str | None:
    """The region that S3 says a bucket lies in; its answer tells that also where it refuses more."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = s3_client().head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    except BotoCoreError:
        return None
    region = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
    return None if region is None else str(region)


@contextlib.contextmanager
def _naming_boto3() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except BotoCoreError as error:
        raise S3Error(type(error).__name__, f"S3 cannot be asked: {error}") from None


# ---- other stores ----------------------------------------------------------------------------------------------------


def _other_store(scheme: str, container: str) -> Any:
    from obstore.exceptions import BaseError

    try:
        with _connecting:
            return _connected_other(scheme, container, limits())
    except BaseError as error:  # as a file of credentials that is not there
        raise StoreError(f"{_kind(scheme)}:Settings", str(error).partition("\n\n")[0]) from None


@functools.lru_cache(maxsize=16)
def _connected_other(scheme: str, container: str, limits: Limits) -> Any:
    from obstore.store import AzureStore, GCSStore

    config: dict[str, Any] = {"skip_signature": True} if limits.anonymous else {}
    if scheme == "gs":
        return GCSStore(container, config=config, **_patience(limits))
    container, _, host = container.partition("@")
    if host:
        config["account_name"] = host.partition(".")[0]
    return AzureStore(container, config=config, **_patience(limits))


# ---- patience and errors of all --------------------------------------------------------------------------------------


def _patience(limits: Limits) -> dict[str, Any]:
    """The settings `storage.*` as obstore's."""
    wait = timedelta(seconds=limits.request_timeout)
    client: dict[str, Any] = {
        "allow_http": True,  # where the endpoint says so
        "connect_timeout": timedelta(seconds=limits.connect_timeout),
        "read_timeout": wait,
        "timeout": _LONGEST_REQUEST,
    }
    if authorities := os.environ.get("AWS_CA_BUNDLE"):
        client["root_certificate"] = Path(authorities).read_bytes()
    return {
        "client_options": client,
        "retry_config": {"max_retries": limits.max_attempts - 1, "retry_timeout": _LONGEST_RETRIES},
    }


@contextlib.contextmanager
def _naming_answers(scheme: str, key: str) -> Iterator[None]:
    """Turn what obstore raises inside the block into FileNotFoundError or StoreError with the store's code."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        code, reason = _code_and_reason(error, key)
        if isinstance(error, FileNotFoundError) and code not in _NO_CONTAINER:
            raise FileNotFoundError(errno.ENOENT, "no such object", key) from None
        if scheme == "s3":
            raise S3Error(code, f"S3 answers: {reason}") from None
        raise StoreError(f"{_kind(scheme)}:{code}", f"{_STORES[scheme]} answers: {reason}") from None


def _kind(scheme: str) -> str:
    """What codes of other stores than S3 begin with."""
    return "gs" if scheme == "gs" else "az"


def _code_and_reason(error: BaseException, key: str) -> tuple[str, str]:
    """The code of an error, or its HTTP status, and what was answered, without the object's name, which may hold
    anything."""
    text = str(error).partition("\n\nDebug source:")[0]
    for around in ("for path {}: ", "at location {} not found: "):
        text = text.replace(around.format(key), "", 1)
    if (provider := _PROVIDER.search(text)) is not None:
        return provider["code"], text
    if "Error performing token request" in text:
        return "NoCredentials", text
    answer = _REASON.search(" ".join(text.split()))
    if answer is None:
        return "", text
    reason = answer["reason"]
    if "redirect without LOCATION" in reason:
        return "BareRedirect", reason
    status, code = _STATUS.search(reason), _CODE.search(reason)
    if status is None:
        return "", reason
    return code["code"] if code is not None else status["status"], reason
