"""One request to an object store by obstore: how patiently it is made, and what its errors are to the rest."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from maskrcnn_core.data.files import require_bytes
from pipelines.storage.s3_settings import Limits, S3Error, StoreError

STORES = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure", "abfs": "Azure", "abfss": "Azure"}
"""What each scheme stands for."""

# A request is signed once, also for its retries, and a signature holds for 15 minutes.
_LONGEST_RETRIES = timedelta(minutes=14)
_LONGEST_REQUEST = timedelta(days=1)  # a large object on a slow line: what ends it is a wait for the next bytes

_REASON = re.compile(r"Error performing \w+ (?P<url>\S+) in \S+(?:, after .*?retry_timeout: \S+)?\s+- (?P<reason>.*)")
_STATUS = re.compile(r"Server returned non-2xx status code: (?P<status>\d+)")
_CODE = re.compile(r"<Code>(?P<code>\w+)</Code>")
_PROVIDER = re.compile(
    r"The operation lacked valid authentication credentials for path External AWS credential provider: (?P<code>\w+)"
)
_NO_TOKEN = re.compile(r"Generic \w+ error: Error performing token request")

_NO_CONTAINER = {"NoSuchBucket", "ContainerNotFound"}


def content(store: Any, key: str, most_bytes: int) -> bytes:
    """An object by one GET, whose answer tells its size before the content is read.

    Raises:
        TooManyBytes: it is larger than `most_bytes`; nothing of it was read.
    """
    import obstore

    answer = obstore.get(store, key)
    require_bytes(int(answer.meta["size"]), most_bytes)
    return bytes(answer.bytes())


def content_range(store: Any, key: str, offset: int, length: int) -> bytes:
    """Bytes of an object from an offset on."""
    import obstore

    return bytes(obstore.get_range(store, key, start=offset, length=length))


def patience(limits: Limits) -> dict[str, Any]:
    """The settings `storage.*` as obstore's."""
    wait = timedelta(seconds=limits.request_timeout)
    client: dict[str, Any] = {
        "allow_http": True,  # where the endpoint says so
        "connect_timeout": timedelta(seconds=limits.connect_timeout),
        "read_timeout": wait,
        "timeout": _LONGEST_REQUEST,
    }
    if authorities := os.environ.get("AWS_CA_BUNDLE"):
        try:
            client["root_certificate"] = Path(authorities).read_bytes()
        except OSError as error:
            raise StoreError("AWS_CA_BUNDLE", str(error)) from None
    return {
        "client_options": client,
        "retry_config": {"max_retries": limits.max_attempts - 1, "retry_timeout": _LONGEST_RETRIES},
    }


@contextlib.contextmanager
def naming_answers(scheme: str, key: str) -> Iterator[None]:
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
        raise StoreError(f"{kind_of(scheme)}:{code}", f"{STORES[scheme]} answers: {reason}") from None


def kind_of(scheme: str) -> str:
    """What codes of other stores than S3 begin with."""
    return "gs" if scheme == "gs" else "az"


def _code_and_reason(error: BaseException, key: str) -> tuple[str, str]:
    """The code of an error, or its HTTP status, and what was answered, without the object's name, which may hold
    anything."""
    text = str(error).partition("\n\nDebug source:")[0]
    for around in ("for path {}: ", "at location {} not found: "):
        text = text.replace(around.format(key), "", 1)
    if (provider := _PROVIDER.match(text)) is not None:
        return provider["code"], text
    if _NO_TOKEN.match(text) is not None:
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
