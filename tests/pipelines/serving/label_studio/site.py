"""A Label Studio as far as a backend sees it: pictures for those who have its token."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.pipelines.serving.http_site import answering

REFRESH = "header.refresh.signature"
LEGACY = "0123456789abcdef"


class Site:
    """Files by path, and what was asked for.

    Attributes:
        files: contents; a text sends on to another address.
        asked: path and Authorization of each request.
        token: that its pictures are given for; empty = for anybody.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes | str] = {}
        self.asked: list[tuple[str, str]] = []
        self.token = ""
        self.address = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        authorization = handler.headers.get("Authorization", "")
        self.asked.append((handler.path, authorization))
        content = self.files.get(handler.path)
        if self.token and authorization != self.token:
            handler.send_response(401)
        elif content is None:
            handler.send_response(404)
        elif isinstance(content, str):
            handler.send_response(302)
            handler.send_header("Location", content)
        else:
            handler.send_response(200)
        body = content if isinstance(content, bytes) else b""
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def refresh(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers["Content-Length"])
        given = json.loads(handler.rfile.read(length))
        self.asked.append((handler.path, str(given)))
        body = json.dumps({"access": "access"}).encode()
        handler.send_response(200 if given == {"refresh": REFRESH} else 401)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@contextmanager
def running_site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def do_POST(self) -> None:
            site.refresh(self)

        def log_message(self, *arguments: Any) -> None:
            pass

    with answering(Handler) as site.address:
        yield site
