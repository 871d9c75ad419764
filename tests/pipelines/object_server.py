"""A server of this machine that speaks as much of S3, Google Cloud Storage and Azure as reading and listing objects
takes, and goes wrong as asked."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

HANG_SECONDS = 3.0

_FACTS = {"ETag": '"same"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}


@dataclass
class Request:
    """What was asked: the method, the path without quotes and the headers, their names in lower case."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class ObjectServer:
    """Its content and faults.

    Attributes:
        objects: content of each `/BUCKET/KEY`.
        faults: what becomes of the next requests: `STATUS CODE`, `cut` (the connection ends in the middle of the
            content), `stall` (nothing comes after the middle), `whole` (a range is answered by the whole object),
            `hang`; then all is well.
        always: the same of all requests for objects.
        sizes: content lengths to claim instead of the true ones; the content does not come.
        region: the bucket's, as `x-amz-bucket-region` tells; requests signed for another one are sent away by
            `elsewhere`, a status with a code or without.
        delay: seconds before each answer.
        requests: all that came.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    always: str = ""
    sizes: dict[str, int] = field(default_factory=dict)
    region: str = ""
    elsewhere: str = "301"
    delay: float = 0.0
    requests: list[Request] = field(default_factory=list)
    address: str = ""


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    """The server, while the block runs."""
    state = ObjectServer()

    class Handler(_Handler):
        server_state = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_state: ObjectServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        state, address = self.server_state, urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        headers = {name.lower(): value for name, value in self.headers.items()}
        state.requests.append(Request(self.command, path, headers))
        time.sleep(state.delay)
        if state.region and f"/{state.region}/s3/" not in headers.get("authorization", ""):
            self.refuse(state.elsewhere)
            return
        fault = state.faults.pop(0) if state.faults else state.always
        if fault == "hang":
            time.sleep(HANG_SECONDS)
            self.close_connection = True
        elif fault and fault not in ("cut", "stall", "whole"):
            self.refuse(fault)
        elif "list-type" in query or query.get("comp") == ["list"]:
            self.list_objects(path.strip("/"), query.get("prefix", [""])[0])
        elif path in state.sizes:
            self.answer(200, b"", {**_FACTS, "Content-Length": str(state.sizes[path])})
        elif path in state.objects:
            self.send_object(state.objects[path], fault)
        else:
            self.refuse("404 NoSuchKey")

    do_HEAD = do_GET

    def send_object(self, content: bytes, fault: str) -> None:
        start, headers = 0, dict(_FACTS)
        asked = self.headers.get("Range")
        if asked and fault != "whole":
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers["Content-Length"] = str(len(content) - start)
        sent = content[start : (start + len(content)) // 2] if fault in ("cut", "stall") else content[start:]
        self.answer(206 if start else 200, sent, headers)
        if fault == "stall":
            time.sleep(HANG_SECONDS)
        self.close_connection = fault in ("cut", "stall")

    def refuse(self, fault: str) -> None:
        status, _, code = fault.partition(" ")
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode() if code else b""
        region = {"x-amz-bucket-region": self.server_state.region} if self.server_state.region else {}
        self.answer(int(status), body, {"Content-Length": str(len(body)), **region})

    def list_objects(self, bucket: str, prefix: str) -> None:
        names = [
            name.removeprefix(f"/{bucket}/") for name in self.server_state.objects if name.startswith(f"/{bucket}/")
        ]
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2015-10-21T07:28:00.000Z</LastModified><ETag>&quot;e"
            f"&quot;</ETag><Size>{len(self.server_state.objects[f'/{bucket}/{name}'])}</Size></Contents>"
            for name in sorted(names)
            if name.startswith(prefix)
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()
        self.answer(200, body, {"Content-Length": str(len(body))})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
