"""The S3 client for what Arrow's file system does not do: listing page by page, writing an object in one request."""

import contextlib
import errno
import functools
import os
from collections.abc import Iterator
from typing import Any

from maskrcnn_core.data.files import require_bytes
from maskrcnn_core.errors import StorageError
from pipelines.storage.s3_settings import Limits, S3Error, explain, is_hopeless, limits


def s3_client() -> Any:
    """A boto3 client with this project's retries and time limits; endpoint and keys from the AWS variables. Threads of
    a process share one."""
    given = os.environ.get
    endpoint = given("AWS_ENDPOINT_URL_S3") or given("AWS_ENDPOINT_URL") or ""
    region = given("AWS_REGION") or given("AWS_DEFAULT_REGION") or ""
    return _connected(endpoint, region, limits(), given("AWS_ACCESS_KEY_ID", ""), os.getpid())


@functools.lru_cache(maxsize=4)
def _connected(endpoint: str, region: str, limits: Limits, key: str, process: int) -> Any:
    """The key and process only tell clients apart."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "max_attempts": limits.max_attempts},
        connect_timeout=limits.connect_timeout,
        read_timeout=limits.request_timeout,
        max_pool_connections=16,
        **({"signature_version": _unsigned()} if limits.anonymous else {}),
    )
    return boto3.client("s3", config=config, endpoint_url=endpoint or None, region_name=region or "us-east-1")


def _unsigned() -> Any:
    from botocore import UNSIGNED

    return UNSIGNED


@contextlib.contextmanager
def naming_s3(uri: str) -> Iterator[None]:
    """Turn what boto3 raises inside the block into a StorageError that names the uri and how to mend it."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        raise StorageError(f"{uri}: {explain(code) or f'S3 answers: {error}'}") from error
    except BotoCoreError as error:
        raise StorageError(f"{uri}: {explain(type(error).__name__) or f'S3 cannot be asked: {error}'}") from error


def create_object(bucket: str, key: str, content: bytes) -> bool:
    """Write an object that is not there yet; False where there is one (a conditional PUT, which S3 decides)."""
    from botocore.exceptions import ClientError

    try:
        s3_client().put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
            return False
        if code != "NotImplemented":  # a store that does not know the condition
            raise
        if s3_client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("KeyCount", 0):
            return False
        s3_client().put_object(Bucket=bucket, Key=key, Body=content)
    return True


def why_denied(uri: str) -> str:
    """The error code behind a denied request, such as `InvalidAccessKeyId`; `AccessDenied` where S3 tells no more.

    Arrow asks with HEAD, and answers to HEAD carry no code.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        s3_client().get_object(Bucket=bucket, Key=key or "-", Range="bytes=0-0")["Body"].close()
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        return code if is_hopeless(code) else "AccessDenied"
    except BotoCoreError as error:
        return type(error).__name__
    return "AccessDenied"


def read_s3_object(uri: str, most_bytes: int, offset: int | None = None) -> bytes:
    """The content of an object whatever its key: obstore reads keys as paths, and refuses `a//b` and `a/../b`. With an
    offset, as many bytes as `most_bytes` says from there on.

    Raises:
        OSError: FileNotFoundError where there is none, TooManyBytes where it is larger than `most_bytes`, else
            S3Error.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        part = {} if offset is None else {"Range": f"bytes={offset}-{offset + most_bytes - 1}"}
        answer = s3_client().get_object(Bucket=bucket, Key=key, **part)
        with contextlib.closing(answer["Body"]) as body:
            require_bytes(int(answer["ContentLength"]), most_bytes)
            return bytes(body.read())
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ("NoSuchKey", "404"):
            raise FileNotFoundError(errno.ENOENT, "no such object", uri) from None
        raise S3Error(code, f"S3 answers: {error}") from None
    except (BotoCoreError, HTTPError, ValueError) as error:  # ValueError: a key that no request can hold
        raise S3Error(type(error).__name__, f"S3 cannot be asked: {error}") from None
