"""An HTTP proxy between an S3 client and a server that throttles, drops connections and refuses, as asked."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class Faults:
    """Which requests go wrong.

    Attributes:
        throttle_every, drop_every: one in so many requests gets a 503, or a connection that closes without an answer;
            0 = none.
        refuse: answer all requests with this S3 error code; empty = none.
        forbidden: keys that contain this are answered with AccessDenied.
        counts: requests by what became of them.
    """

    def __init__(self) -> None:
        self.throttle_every = 0
        self.drop_every = 0
        self.refuse = ""
        self.forbidden = ""
        self.counts = {"passed": 0, "throttled": 0, "dropped": 0, "refused": 0}
        self._number = 0
        self._lock = threading.Lock()

    def fate(self, path: str) -> str:
        with self._lock:
            self._number += 1
            fate = "passed"
            if self.refuse or (self.forbidden and self.forbidden in path):
                fate = "refused"
            elif self.throttle_every and self._number % self.throttle_every == 0:
                fate = "throttled"
            elif self.drop_every and self._number % self.drop_every == 1:
                fate = "dropped"
            self.counts[fate] += 1
            return fate


@contextmanager
def faulty_proxy(host: str, port: int) -> Iterator[tuple[str, Faults]]:
    """The address of a proxy before host:port, and its faults."""
    faults = Faults()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.body()
            fate = faults.fate(self.path)
            if fate == "dropped":
                self.close_connection = True
                return
            if fate == "throttled":
                self.answer(503, SLOW_DOWN, {})
                return
            if fate == "refused":
                code = faults.refuse or "AccessDenied"
                self.answer(403, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode(), {})
                return
            connection = http.client.HTTPConnection(host, port, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            skipped = ("transfer-encoding", "connection", "content-length")
            headers = {name: value for name, value in response.getheaders() if name.lower() not in skipped}
            content = response.read()
            self.answer(response.status, content, headers, response.getheader("Content-Length"))
            connection.close()

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            content = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailing headers
                pass
            del self.headers["Transfer-Encoding"]
            self.headers["Content-Length"] = str(len(content))
            return content

        def answer(self, status: int, body: bytes, headers: dict[str, str], length: str | None = None) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
