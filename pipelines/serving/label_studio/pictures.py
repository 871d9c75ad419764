"""The pictures of tasks: of the one Label Studio that the service was told of, or below `serve.uris`.

A task's data are somebody's text. Were any address in them fetched, whoever can make a task could look around in the
service's network.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from maskrcnn_core.errors import ConfigError, ImageError, StorageError
from pipelines import storage
from pipelines.serving.uploads import UploadLimits, is_allowed

_SECONDS = 20.0
_TOKEN_SECONDS = 240.0  # an access token of Label Studio's lives for five minutes


@dataclass(frozen=True)
class LabelStudioSite:
    """A Label Studio.

    Attributes:
        address: such as http://localhost:8080; empty = none, and only objects below `serve.uris` are read.
        token: of one of its users; empty = none is sent.
    """

    address: str = ""
    token: str = ""


def read_token(uri: str) -> str:
    """The token in a file.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    try:
        token = storage.read_bytes(uri).decode().strip()
    except (StorageError, UnicodeDecodeError) as error:
        raise ConfigError(f"serve.label_studio_token: {error}; expected a file with the token") from error
    if not token.isprintable() or not token or " " in token:
        raise ConfigError(f"serve.label_studio_token: {uri} holds no token; expected one line without blanks")
    return token


class TaskPictures:
    """Reads the pictures of tasks.

    Args:
        site: the Label Studio that keeps them.
        limits: folders that may be read, and bytes of a file.
        fetch: reads an object.
    """

    def __init__(self, site: LabelStudioSite, limits: UploadLimits, fetch: Callable[[str], bytes | ImageError]) -> None:
        self._site, self._limits, self._fetch = site, limits, fetch
        self._opener = urllib.request.build_opener(_Redirects)
        self._access = ("", 0.0)  # a token and until when it can be used

    def read(self, uri: str) -> bytes | ImageError:
        """A picture as its file, or why it cannot be had. Blocks."""
        if is_allowed(uri, self._limits.uris):
            return self._fetch(uri)
        address = self._address(uri)
        if address is None:
            return ImageError(
                "missing",
                "the task's picture is neither on the Label Studio of serve.label_studio nor below serve.uris",
            )
        try:
            content = self._get(address)
        except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
            # What the other side says may hold anything; its status is enough.
            status = f"status {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
            return ImageError("missing", f"Label Studio does not give the task's picture: {status}")
        if len(content) > self._limits.max_bytes:
            return ImageError("too_large", f"the task's picture has more than {self._limits.max_bytes:,} bytes")
        return content

    def _address(self, uri: str) -> str | None:
        """Where on the Label Studio it is; None where it is not there."""
        if not self._site.address or not uri.isprintable() or set(uri) & set("\\ "):
            return None
        address = urljoin(f"{self._site.address.rstrip('/')}/", uri)
        there, here = urlsplit(address), urlsplit(self._site.address)
        return address if (there.scheme, there.netloc) == (here.scheme, here.netloc) else None

    def _get(self, address: str) -> bytes:
        headers = {"Authorization": self._authorization()} if self._site.token else {}
        with self._opener.open(urllib.request.Request(address, headers=headers), timeout=_SECONDS) as answer:
            content: bytes = answer.read(self._limits.max_bytes + 1)
        return content

    def _authorization(self) -> str:
        """A legacy token is sent as it is; a personal one (a JSON web token) buys tokens that live for minutes."""
        token = self._site.token
        if token.count(".") != 2:
            return f"Token {token}"
        access, until = self._access
        if time.monotonic() >= until:
            body = json.dumps({"refresh": token}).encode()
            address = urljoin(f"{self._site.address.rstrip('/')}/", "api/token/refresh")
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
            with self._opener.open(request, timeout=_SECONDS) as answer:
                access = str(json.loads(answer.read(1 << 16))["access"])
            self._access = access, time.monotonic() + _TOKEN_SECONDS
        return f"Bearer {access}"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Label Studio sends on to its cloud storage: by HTTP alone, and without the token."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.HTTPError(newurl, code, "sent on to another scheme", headers, fp)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            request.remove_header("Authorization")
        return request
