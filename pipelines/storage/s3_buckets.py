"""A bucket of S3 read by obstore, with credentials, profiles, endpoint and region as boto3 finds them."""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pyarrow import fs

from pipelines.storage.files import naming
from pipelines.storage.object_requests import content, content_range, naming_answers, patience
from pipelines.storage.s3_client import read_s3_object, s3_client
from pipelines.storage.s3_settings import Limits, S3Error, is_forbidden, limits

# boto3 renews what expires within 10 minutes; obstore asks again 5 minutes before this is over.
_CREDENTIALS_HOLD = timedelta(minutes=8)

# What S3 answers where a bucket lies in another region than was asked.
_ELSEWHERE = {"BareRedirect", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}

_FIRST_REGION = "us-east-1"  # which servers that know of no regions take

_connecting = threading.Lock()


def open_bucket(uri: str, name: str) -> "Bucket":
    """The bucket `name`, with one client and its pool of connections for each of the settings in force.

    Raises:
        StorageError: it cannot be asked, as where its region cannot be found out; names `uri`.
    """
    given = os.environ.get
    endpoint = given("AWS_ENDPOINT_URL_S3") or given("AWS_ENDPOINT_URL") or ""
    region = given("AWS_REGION") or given("AWS_DEFAULT_REGION") or ""
    who = given("AWS_ACCESS_KEY_ID", ""), given("AWS_PROFILE", ""), given("AWS_SESSION_TOKEN", "")
    with naming(uri), _connecting:
        return _connected(name, region, endpoint, limits(), who)


@functools.lru_cache(maxsize=256)
def _connected(name: str, region: str, endpoint: str, limits: Limits, who: tuple[str, ...]) -> "Bucket":
    return Bucket(name, region, endpoint, limits, who)


class Bucket:
    """A bucket of S3. Where it turns out to lie in another region than the settings say, it is asked there.

    Args:
        name: of it.
        region, endpoint: as the settings say; empty = as boto3 says, and the bucket's own region.
        limits: how patiently it is asked.
        who: variables that say by whom.
    """

    def __init__(self, name: str, region: str, endpoint: str, limits: Limits, who: tuple[str, ...]) -> None:
        self._name, self._endpoint, self._limits, self._who = name, endpoint, limits, who
        self._has_moved = False
        if not region:
            is_aws = ".amazonaws.com" in (endpoint or _endpoint_of(_FIRST_REGION, who))
            region = fs.resolve_s3_region(name) if is_aws else _FIRST_REGION
        with _naming_boto3():
            self._is_signed = not limits.anonymous and _session(who).get_credentials() is not None
        self._store = self._store_in(region)

    def read(self, uri: str, key: str, most_bytes: int, offset: int | None = None) -> bytes:
        """The content of an object, whose whole name is `uri`; with an offset, as many bytes from there on.

        Raises:
            OSError: as `read_s3_object`.
        """
        try:
            return self._read(key, most_bytes, offset)
        except S3Error as error:
            if is_forbidden(error.code) and not self._is_signed and not self._limits.anonymous:
                raise S3Error("NoCredentialsError", f"unsigned, since no credentials were found: {error}") from None
            if error.code not in _ELSEWHERE:
                raise
        if self._has_moved_to_its_region():
            return self._read(key, most_bytes, offset)
        return read_s3_object(uri, most_bytes, offset)  # boto3 may know what else there is to follow

    def _read(self, key: str, most_bytes: int, offset: int | None) -> bytes:
        with naming_answers("s3", key):
            if offset is not None:
                return content_range(self._store, key, offset, most_bytes)
            return content(self._store, key, most_bytes)

    def _has_moved_to_its_region(self) -> bool:
        with _connecting:
            if not self._has_moved:
                region = _region_of(self._name)
                if region is None:
                    return False
                self._store, self._has_moved = self._store_in(region), True
            return True

    def _store_in(self, region: str) -> Any:
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store

        endpoint = self._endpoint or _endpoint_of(region, self._who)
        # Both names, since what the environment says to the second one would go before the first.
        config = {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint, "region": region}
        if not self._is_signed:
            return S3Store(self._name, config={**config, "skip_signature": True}, **patience(self._limits))
        provider = Boto3CredentialProvider(_session(self._who), ttl=_CREDENTIALS_HOLD)
        return S3Store(self._name, config=config, credential_provider=provider, **patience(self._limits))


@functools.lru_cache(maxsize=4)
def _session(who: tuple[str, ...]) -> Any:
    """What boto3 finds of credentials and settings; buckets share it, and credentials that it has to fetch."""
    import boto3

    return boto3.Session()


@functools.lru_cache(maxsize=64)
def _endpoint_of(region: str, who: tuple[str, ...]) -> str:
    """Where boto3 asks, which knows AWS's partitions and what ~/.aws/config says."""
    with _naming_boto3():
        return str(_session(who).client("s3", region_name=region).meta.endpoint_url)


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
