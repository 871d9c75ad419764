"""What every request passes before a route sees it, and every answer on its way out: keys, rates, limits, headers.

A layer of ASGI around the application. It decides by the headers, before any byte of the body is read, then counts the
body's bytes while they come, and ends what takes too long, whatever the client's headers say.
"""

import asyncio
import base64
import binascii
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.serving.counts import Counts
from pipelines.serving.keys import Keys
from pipelines.serving.problems import MEDIA_TYPE, Problem, service_failed, too_busy
from pipelines.serving.request_rates import RequestRates

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("maskrcnn.serving")

# Without a key: whether the service lives, and the page, where a key can be typed in.
OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
OPEN_FOLDER = "/page/"

# Answered while the service is full: whoever looks after it has to see that.
_WITHOUT_SLOT = OPEN_PATHS | {"/metrics"}

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BEARER = re.compile(r"[Bb]earer +(\S{1,500})")
_BASIC = re.compile(r"[Bb]asic +([A-Za-z0-9+/=]{1,1000})")
_LONGEST_PATH = 2000
_MOST_HEADER_BYTES = 32_768

# Of the bodies of all requests that are worked on.
_MOST_BYTES_HELD = 1 << 30

_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)
_NOT_STORED = (b"cache-control", b"no-store")


@dataclass(frozen=True)
class GateLimits:
    """Of one request, and of all.

    Attributes:
        max_bytes: of a body.
        max_requests: at once.
        timeout: seconds.
    """

    max_bytes: int
    max_requests: int
    timeout: float


class Gate:
    """The layer.

    Args:
        app: what is guarded.
        limits: of requests.
        keys: that may be used; None = none is asked for.
        rates: of each key, or address.
        counts: of what is answered.
    """

    def __init__(self, app: App, limits: GateLimits, keys: Keys | None, rates: RequestRates, counts: Counts) -> None:
        self._app, self._limits, self._keys, self._rates, self._counts = app, limits, keys, rates, counts
        self._under_way = 0
        self._held = _Held()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the beginning and end of the application."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, _Answer(send, scope))
        else:  # a WebSocket: refused before it is one
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        began = time.monotonic()
        body = _Body(receive, self._limits.max_bytes, self._held)
        try:
            async with asyncio.timeout(self._limits.timeout):
                self._require_allowed(scope)
                with self._slot(scope):
                    body.require_small(_headers(scope))
                    await self._app(scope, body.receive, answer.send)
        except TimeoutError:
            await answer.refuse(self._late(body))
        except Problem as problem:
            await answer.refuse(problem)
        except Exception as error:
            # The text of an error may hold anything: it stays here.
            logger.exception("request %s failed", answer.request_id, exc_info=error)
            if not answer.status:
                await answer.refuse(service_failed())
        finally:
            self._held.bytes -= body.read
            self._counts.answered(scope.get("path", ""), answer.status, time.monotonic() - began)

    def _late(self, body: "_Body") -> Problem:
        limit = f"{self._limits.timeout:g} s"
        if body.is_complete:
            return too_busy(f"not answered within {limit}", 1, status=504)
        return Problem(408, f"the body did not come within {limit}")

    def _require_allowed(self, scope: Scope) -> None:
        path = scope.get("path", "")
        if len(path) > _LONGEST_PATH or len(scope.get("query_string", b"")) > _LONGEST_PATH:
            raise Problem(414, f"the address is longer than {_LONGEST_PATH} characters")
        if sum(len(name) + len(value) for name, value in scope.get("headers", [])) > _MOST_HEADER_BYTES:
            raise Problem(431, f"the headers have more than {_MOST_HEADER_BYTES:,} bytes")
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
        client = (scope.get("client") or ("", 0))[0]
        if self._keys is not None and not is_open:
            client = f"key {self.require_key(_headers(scope).get('authorization', ''))}"
        if not is_open:
            self.require_rate(client)

    def require_key(self, authorization: str) -> str:
        """The name of the key in an Authorization header.

        Raises:
            Problem: 401, there is none, or nobody's.
        """
        if self._keys is None:
            return ""
        key = _key_of(authorization.strip())
        name = None if key is None else self._keys.name_of(key)
        if name is None:
            what = "no key was given" if key is None else "the key is not known"
            raise Problem(
                401, f"{what}; expected the header `Authorization: Bearer KEY`", {"WWW-Authenticate": "Bearer"}
            )
        return name

    def require_rate(self, client: str) -> None:
        """Counts a request.

        Raises:
            Problem: 429, too many.
        """
        if wait := self._rates.wait_of(client):
            raise too_busy("too many requests of this key or address in the last minute", wait, status=429)

    @contextmanager
    def _slot(self, scope: Scope) -> Iterator[None]:
        path = scope.get("path", "")
        if path in _WITHOUT_SLOT or path.startswith(OPEN_FOLDER):
            yield
            return
        with self.slot():
            yield

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A place among the requests that are worked on.

        Raises:
            Problem: 503, all are taken.
        """
        if self._under_way >= self._limits.max_requests:
            raise too_busy(f"{self._under_way} requests are being worked on already", 1)
        self._under_way += 1
        self._counts.under_way = self._under_way
        try:
            yield
        finally:
            self._under_way -= 1
            self._counts.under_way = self._under_way


@dataclass
class _Held:
    """Bytes of bodies in memory."""

    bytes: int = 0


class _Body:
    """The bytes of a request, counted."""

    def __init__(self, receive: Receive, most: int, held: _Held) -> None:
        self._receive, self._most, self._held = receive, most, held
        self.read = 0
        self.is_complete = False

    def require_small(self, headers: dict[str, str]) -> None:
        """Refuses by the header what would be refused later."""
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._most:
            raise self._too_large()
        if headers.get("content-encoding", "identity") != "identity":
            raise Problem(
                415, "the body is compressed; expected Content-Encoding identity", {"Accept-Encoding": "identity"}
            )

    async def receive(self) -> Message:
        """As ASGI's `receive`.

        Raises:
            Problem: 413, or 503 where all bodies together are too much.
        """
        message = await self._receive()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.read += size
            self._held.bytes += size
            self.is_complete = not message.get("more_body", False)
            if self.read > self._most:
                raise self._too_large()
            if self._held.bytes > _MOST_BYTES_HELD:
                raise too_busy("the bodies that are being worked on fill the memory", 1)
        return message

    def _too_large(self) -> Problem:
        return Problem(413, f"the body has more than {self._most:,} bytes", {"Connection": "close"})


class _Answer:
    """An answer on its way out: security headers on all, none twice."""

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send, self._path = send, str(scope.get("path", ""))
        self._is_kept = self._path.startswith(OPEN_FOLDER)
        given = _headers(scope).get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        """As ASGI's `send`."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = list(message.get("headers", []))
            present = {name.lower() for name, _ in given}
            added = [*_SECURITY_HEADERS, *([] if self._is_kept else [_NOT_STORED])]
            message = {**message, "headers": given + [header for header in added if header[0] not in present]}
        await self._send(message)

    async def refuse(self, problem: Problem) -> None:
        """The problem, unless an answer has begun: then the connection can only break."""
        if self.status:
            raise problem
        content = problem.document(self.request_id, self._path)
        headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(content)), **problem.headers}
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": content})


def _key_of(authorization: str) -> str | None:
    """A bearer's key, or the password of those who can send nothing else, as Label Studio; None = none is there."""
    if found := _BEARER.fullmatch(authorization):
        return found[1]
    if not (found := _BASIC.fullmatch(authorization)):
        return None
    try:
        return base64.b64decode(found[1], validate=True).decode("utf-8", "surrogateescape").partition(":")[2]
    except binascii.Error:
        return None


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-case name; of several the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers", [])}
