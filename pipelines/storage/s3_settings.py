"""How patiently object stores are asked, and what their errors mean. The settings travel as environment variables, so
that every process of a job sees them."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipelines.storage.config import StorageConfig

# Codes of stores and Arrow and names of boto3's errors that say that nothing at all can be read, whatever the object.
_HOPELESS = {
    "InvalidAccessKeyId": "the access key is unknown to S3; check AWS_ACCESS_KEY_ID and AWS_PROFILE",
    "INVALID_ACCESS_KEY_ID": "the access key is unknown to S3; check AWS_ACCESS_KEY_ID and AWS_PROFILE",
    "SignatureDoesNotMatch": "the secret key does not fit the access key; check AWS_SECRET_ACCESS_KEY",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key does not fit the access key; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the AWS session has expired; sign in again (aws sso login) or renew AWS_SESSION_TOKEN",
    "EXPIRED_TOKEN": "the AWS session has expired; sign in again (aws sso login) or renew AWS_SESSION_TOKEN",
    "InvalidToken": "AWS_SESSION_TOKEN is not valid; sign in again (aws sso login)",
    "NoCredentialsError": "no AWS credentials; set AWS_ACCESS_KEY_ID or AWS_PROFILE, or --storage.anonymous true",
    "NoSuchBucket": "there is no such bucket; check its name, AWS_REGION and --storage.endpoint_url",
    "NO_SUCH_BUCKET": "there is no such bucket; check its name, AWS_REGION and --storage.endpoint_url",
    **dict.fromkeys(
        ("UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError"),
        "the AWS session has expired; sign in again (aws sso login)",
    ),
    "ProfileNotFound": "AWS_PROFILE names a profile that ~/.aws does not have; correct or unset it",
    "AWS_CA_BUNDLE": "the file that AWS_CA_BUNDLE names cannot be read; correct or unset it",
    "EndpointConnectionError": "the S3 endpoint does not answer; check AWS_ENDPOINT_URL or --storage.endpoint_url",
    "gs:NoSuchBucket": "there is no such bucket; check its name",
    **dict.fromkeys(
        ("gs:NoCredentials", "gs:401", "gs:AuthenticationRequired", "gs:InvalidSecurity", "gs:Settings"),
        "no Google credentials that are accepted; set GOOGLE_APPLICATION_CREDENTIALS, sign in (gcloud auth "
        "application-default login), or --storage.anonymous true",
    ),
    "az:ContainerNotFound": "there is no such container; check its name and AZURE_STORAGE_ACCOUNT_NAME",
    **dict.fromkeys(
        ("az:NoCredentials", "az:401", "az:AuthenticationFailed", "az:InvalidAuthenticationInfo", "az:Settings"),
        "no Azure credentials that are accepted; set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or "
        "AZURE_STORAGE_SAS_TOKEN), or --storage.anonymous true",
    ),
}
_DENIED = ("AccessDenied", "ACCESS_DENIED", "Forbidden", "403", "AllAccessDisabled")
_AZURE_DENIED = ("AuthorizationFailure", "AuthorizationPermissionMismatch", "PublicAccessNotPermitted")
_FORBIDDEN = {
    name: "access denied; check the rights of these credentials and the bucket's policy"
    for name in (*_DENIED, "gs:AccessDenied", "gs:403", "az:403", *(f"az:{name}" for name in _AZURE_DENIED))
}
_ARROW_CODE = re.compile(
    r"AWS Error (?P<code>\w+)(?: \(HTTP status (?P<status>\d+)\))? during \w+ operation"
    r"(?:: Unable to parse ExceptionName: (?P<name>\w+))?"  # how it quotes a code that its library does not know
)
_VARIABLES = "MASKRCNN_STORAGE_"


@dataclass(frozen=True)
class Limits:
    """Patience with S3.

    Attributes:
        max_attempts: of one request.
        connect_timeout, request_timeout: seconds.
        anonymous: requests are not signed (public buckets).
    """

    max_attempts: int = 10
    connect_timeout: float = 10.0
    request_timeout: float = 60.0
    anonymous: bool = False


def settings_environment(config: StorageConfig) -> dict[str, str]:
    """The environment variables that carry the settings to every process."""
    chosen = {
        f"{_VARIABLES}MAX_ATTEMPTS": str(config.max_attempts),
        f"{_VARIABLES}CONNECT_TIMEOUT": str(config.connect_timeout),
        f"{_VARIABLES}REQUEST_TIMEOUT": str(config.request_timeout),
        f"{_VARIABLES}ANONYMOUS": str(int(config.anonymous)),
    }
    chosen |= {"AWS_ENDPOINT_URL": config.endpoint_url} if config.endpoint_url else {}
    return chosen | ({"AWS_REGION": config.region} if config.region else {})


def applied(config: StorageConfig) -> contextlib.AbstractContextManager[None]:
    """The settings hold for this process and those it starts, inside the block."""
    return changed_environment(settings_environment(config))


@contextlib.contextmanager
def changed_environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """The environment variables hold for this process and those it starts, inside the block."""
    former = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def limits() -> Limits:
    """The limits in force."""
    given = os.environ.get
    return Limits(
        max_attempts=int(given(f"{_VARIABLES}MAX_ATTEMPTS", Limits.max_attempts)),
        connect_timeout=float(given(f"{_VARIABLES}CONNECT_TIMEOUT", Limits.connect_timeout)),
        request_timeout=float(given(f"{_VARIABLES}REQUEST_TIMEOUT", Limits.request_timeout)),
        anonymous=given(f"{_VARIABLES}ANONYMOUS", "0") == "1",
    )


class StoreError(OSError):
    """What an object store answered, other than that there is no such object.

    Attributes:
        code: the store's, or the name of the client's error; of other stores than S3 behind `gs:` or `az:`.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class S3Error(StoreError):
    """What S3 answered."""


def error_code(error: BaseException, uri: str) -> str:
    """The code of an error that came of reading or writing `uri`; empty where it has none.

    Arrow has it in its text alone, beside the object's key, which may hold anything.
    """
    if isinstance(error, StoreError):
        return error.code
    if isinstance(error, PermissionError):
        return "AccessDenied"
    if not uri.startswith("s3://"):
        return ""
    text = str(error)
    for name in (uri.removeprefix("s3://"), uri.removeprefix("s3://").partition("/")[2]):
        text = text.replace(f"'{name}'", "''")
    match = _ARROW_CODE.search(text)
    return "" if match is None else match.group("name") or match.group("status") or match.group("code")


def explain(code: str) -> str | None:
    """How to mend an S3 error after which no other object can be read either, or that denies access; else None."""
    return _HOPELESS.get(code) or _FORBIDDEN.get(code)


def is_hopeless(code: str) -> bool:
    """Whether every further object will fail the same way: wrong credentials, no such bucket."""
    return code in _HOPELESS


def is_forbidden(code: str) -> bool:
    """Whether this object, or all of them, are closed to these credentials."""
    return code in _FORBIDDEN
