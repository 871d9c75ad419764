"""A server of objects that answers late, as an object store across a network does, in a process of its own: so much of
S3 as reading objects takes."""

import asyncio
import multiprocessing
import random
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_double, c_int64
from dataclasses import dataclass
from typing import Any

_SMALLEST, _LARGEST = 60_000, 160_000  # bytes of an image of COCO
_BODIES = 64
_START_SECONDS = 60.0
_SOCKET_BYTES = 1 << 20  # an answer is handed to the system at once


@dataclass(frozen=True)
class DelayedObjects:
    """The server.

    Attributes:
        address: http://HOST:PORT; its objects are `/BUCKET/NUMBER`, of any bucket and number.
        bodies: content of the objects, by number modulo their count.
    """

    address: str
    bodies: tuple[bytes, ...]
    _requests: Any
    _seconds: Any

    @property
    def requests(self) -> int:
        """How many came so far."""
        return int(self._requests.value)

    @property
    def seconds(self) -> float:
        """Its processor time so far."""
        return float(self._seconds.value)


@contextmanager
def delayed_objects(delay: float) -> Iterator[DelayedObjects]:
    """The server, while the block runs.

    Args:
        delay: seconds before each answer.
    """
    dice = random.Random(0)
    bodies = tuple(dice.randbytes(dice.randint(_SMALLEST, _LARGEST)) for _ in range(_BODIES))
    context = multiprocessing.get_context("spawn")
    requests, seconds = context.Value(c_int64, lock=False), context.Value(c_double, lock=False)
    receiver, sender = context.Pipe(duplex=False)
    server = context.Process(target=_serve, args=(bodies, delay, requests, seconds, sender), daemon=True)
    server.start()
    try:
        if not receiver.poll(_START_SECONDS):
            raise RuntimeError(f"the server has not started within {_START_SECONDS:g} s")
        yield DelayedObjects(f"http://127.0.0.1:{receiver.recv()}", bodies, requests, seconds)
    finally:
        server.kill()  # a job keeps SIGTERM back, and so do the processes that it starts
        server.join()


def _serve(bodies: Sequence[bytes], delay: float, requests: Any, seconds: Any, sender: Any) -> None:
    answers = [_head(body) + body for body in bodies]

    async def run() -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(bodies, answers, delay, requests, seconds), sock=listener
        )
        sender.send(listener.getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def _head(body: bytes) -> bytes:
    lines = (
        *("HTTP/1.1 200 OK", f"Content-Length: {len(body)}", f'ETag: "{len(body)}"', "Accept-Ranges: bytes"),
        *("Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT", "Content-Type: image/jpeg", "", ""),
    )
    return "\r\n".join(lines).encode()


class _Connection(asyncio.Protocol):
    """Answers requests, which have no bodies, in their order."""

    def __init__(
        self, bodies: Sequence[bytes], answers: Sequence[bytes], delay: float, requests: Any, seconds: Any
    ) -> None:
        self._bodies, self._answers, self._delay = bodies, answers, delay
        self._requests, self._seconds = requests, seconds
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            request, _, self._received = self._received.partition(b"\r\n\r\n")
            asyncio.get_running_loop().call_later(self._delay, self._answer, request)

    def _answer(self, request: bytes) -> None:
        self._requests.value += 1
        if self._transport is not None and not self._transport.is_closing():
            method, path, _ = request.split(b"\r\n", 1)[0].split(b" ")
            number = int(path.rpartition(b"/")[2]) % len(self._answers)
            answer = self._answers[number]
            self._transport.write(answer[: -len(self._bodies[number])] if method == b"HEAD" else answer)
        self._seconds.value = time.process_time()
