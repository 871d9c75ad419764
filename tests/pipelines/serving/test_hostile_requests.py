"""Requests that mean no good, or are broken: each has its status and a document, and the service goes on."""

import io
import json
import socket
import struct
import zlib
from collections.abc import Iterator, Mapping

import pytest
from PIL import Image

from pipelines.serving.uploads import is_allowed
from tests.pipelines.serving.local_service import LocalServer, Reply, form, picture


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, with next to nothing in it."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 99))]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def bomb() -> bytes:
    """300 x 300 pixels by its header, and a thousand times that in its data."""
    data = zlib.compress(b"\0" * 50_000_000)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 300, 300, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def exif_bomb() -> bytes:
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    Image.new("RGB", (40, 40)).save(content, "JPEG", exif=exif)
    return content.getvalue()


def json_body(document: object) -> tuple[bytes, dict[str, str]]:
    return json.dumps(document).encode(), {"Content-Type": "application/json"}


PLAIN = picture()
BODIES: dict[str, tuple[str, bytes, Mapping[str, str], int]] = {
    "empty": ("/v1/detect", b"", {}, 400),
    "text": ("/v1/detect", b"root:x:0:0:root:/root:/bin/bash\n", {"Content-Type": "image/jpeg"}, 422),
    "a page": ("/v1/detect", b"<!doctype html><p>", {}, 422),
    "zeros": ("/v1/detect", bytes(1000), {}, 422),
    "an archive": ("/v1/detect", b"PK\x03\x04" + bytes(100), {}, 422),
    "drawings": ("/v1/detect", b"<svg xmlns='http://www.w3.org/2000/svg'/>", {}, 415),
    "HEIC": ("/v1/detect", b"\0\0\0\x18ftypheic" + bytes(50), {}, 415),
    "half a PNG": ("/v1/detect", PLAIN[: len(PLAIN) // 2], {}, 422),
    "half a JPEG": ("/v1/detect", picture(kind="JPEG")[:400], {}, 422),
    "one byte of a JPEG": ("/v1/detect", b"\xff", {}, 422),
    "many pixels": ("/v1/detect", png_header(60_000, 60_000), {}, 413),
    "no pixels": ("/v1/detect", png_header(0, 60), {}, 422),
    "a bomb": ("/v1/detect", bomb(), {}, 200),
    "much EXIF": ("/v1/detect", exif_bomb(), {}, 200),
    "compressed": ("/v1/detect", PLAIN, {"Content-Encoding": "gzip"}, 415),
    "unknown model": ("/v1/detect?model=../../etc/passwd", PLAIN, {}, 404),
    "empty model": ("/v1/detect?model=", PLAIN, {}, 200),
    "long model": (f"/v1/detect?model={'m' * 65}", PLAIN, {}, 422),
    "model of NUL": ("/v1/detect?model=%00", PLAIN, {}, 404),
    "no number": ("/v1/detect?score_threshold=nan", PLAIN, {}, 422),
    "infinite": ("/v1/detect?score_threshold=inf", PLAIN, {}, 422),
    "negative": ("/v1/detect?max_detections=-1", PLAIN, {}, 422),
    "many digits": (f"/v1/detect?max_detections={'9' * 1900}", PLAIN, {}, 422),
    "unknown form": ("/v1/detect?format=exe", PLAIN, {}, 422),
    "unknown category": ("/v1/detect?categories=seven,unicorn", PLAIN, {}, 422),
    "many categories": (f"/v1/detect?categories={'3,' * 999}3", PLAIN, {}, 414),
    "a misspelt argument": ("/v1/detect?threshold=0.5", PLAIN, {}, 422),
    "an argument twice": ("/v1/detect?max_detections=1&max_detections=9", PLAIN, {}, 422),
    "two images": ("/v1/detect", *form(("a", PLAIN), ("b", PLAIN)), 422),
    "five images": ("/v1/detect:batch", *form(*[("a", PLAIN)] * 5), 413),
    "another part": ("/v1/detect", *form(("a", PLAIN), name="file"), 422),
    "no part": ("/v1/detect", *form(), 400),
    "a form without boundary": ("/v1/detect", b"--x", {"Content-Type": "multipart/form-data"}, 400),
    "a form cut": ("/v1/detect", form(("a", PLAIN))[0][:80], form()[1], 400),
    "a name that climbs": ("/v1/detect", *form(("../../etc/passwd", PLAIN)), 200),
    "no JSON": ("/v1/detect", b"{", {"Content-Type": "application/json"}, 400),
    "deep JSON": ("/v1/detect", b"[" * 100_000, {"Content-Type": "application/json"}, 400),
    "JSON without names": ("/v1/detect", *json_body({"url": "a"}), 422),
    "a number for a name": ("/v1/detect", *json_body({"uri": 5}), 422),
    "a local file": ("/v1/detect", *json_body({"uri": "file:///etc/passwd"}), 403),
    "a path": ("/v1/detect", *json_body({"uri": "/etc/passwd"}), 403),
    "the cloud's metadata": ("/v1/detect", *json_body({"uri": "http://169.254.169.254/latest/meta-data"}), 403),
    "an object": ("/v1/detect", *json_body({"uri": "s3://bucket/a.jpg"}), 403),
    "many names": ("/v1/detect:batch", *json_body({"uris": ["s3://b/a"] * 1000}), 413),
    "a timeout switched off": ("/v1/detect", PLAIN, {"x-request-timeout-seconds": "0"}, 200),
    "a request id that forges lines": ("/v1/detect?model=x", PLAIN, {"x-request-id": "a b\tc"}, 404),
    "a long request id": ("/v1/detect?model=x", PLAIN, {"x-request-id": "a" * 5000}, 404),
}  # fmt: skip


@pytest.fixture(autouse=True)
def lives(server: LocalServer) -> Iterator[None]:
    """After every request the next one is answered as before."""
    yield
    assert server.ask("/v1/detect?max_detections=1", PLAIN).status == 200


def require_document(reply: Reply, status: int) -> None:
    assert reply.status == status, reply.body[:300]
    for name in ("x-content-type-options", "content-security-policy", "referrer-policy", "x-frame-options"):
        assert name in reply.headers
    if status == 200:
        return
    assert reply.headers["content-type"] == "application/problem+json"
    document = reply.json
    assert (document["status"], document["type"]) == (status, "about:blank")
    assert document["detail"].isprintable()
    assert len(document["detail"]) <= 500
    assert len(document["request_id"]) <= 64
    for secret in ("Traceback", ".py", "site-packages", "/work", "/home", "0x"):
        assert secret not in document["detail"]


@pytest.mark.parametrize("case", BODIES)
def test_a_body_has_its_status(server: LocalServer, case: str) -> None:
    path, body, headers, status = BODIES[case]
    require_document(server.ask(path, body, headers), status)


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/page/none.js", "GET", 404),
        ("/v1", "GET", 404),
        ("/v1/detect", "GET", 405),
        ("/v1/models/none", "GET", 404),
        ("/v1/models/..%2f..%2fetc%2fpasswd", "GET", 404),
        ("/page/../../../etc/passwd", "GET", 404),
        ("/page/..%2f..%2fconfig.py", "GET", 404),
        ("/page//etc/passwd", "GET", 404),
        ("/v2/models/default/versions/9", "GET", 404),
        (f"/{'a' * 5000}", "GET", 414),
        ("/healthz", "TRACE", 405),
        ("/%00", "GET", 404),
    ],
)
def test_a_path_has_its_status(server: LocalServer, path: str, method: str, status: int) -> None:
    require_document(server.ask(path, method=method), status)


def raw_reply(server: LocalServer, *pieces: bytes, seconds: float = 20.0) -> bytes:
    """What comes back for bytes that no library would send; pieces that are not taken any more are not sent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:  # it has answered already
            pass
        received = b""
        try:
            while more := connection.recv(65536):
                received += more
                if b"\r\n\r\n" in received and b"}" in received.partition(b"\r\n\r\n")[2]:
                    break
        except OSError:
            pass
        return received


def test_a_body_without_end_is_cut_off(server: LocalServer) -> None:
    head = b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    reply = raw_reply(server, head, *[chunk] * 3000)
    assert reply.startswith(b"HTTP/1.1 413")


def test_a_length_that_is_too_great_is_refused_at_once(server: LocalServer) -> None:
    reply = raw_reply(server, b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "head",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_refused(server: LocalServer, head: bytes) -> None:
    reply = raw_reply(server, head, seconds=3.0)
    assert reply == b"" or reply.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))


def test_a_client_that_leaves_costs_nothing(server: LocalServer) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        ("s3://bucket/folder/a.jpg", True),
        ("s3://bucket/folder/b/c d.jpg", True),
        ("s3://bucket/folder", False),
        ("s3://bucket/folder2/a.jpg", False),
        ("s3://bucket/folder/../secret/a.jpg", False),
        ("s3://bucket/folder/%2e%2e/secret/a.jpg", False),
        ("s3://bucket/folder/a?versionId=1", False),
        ("s3://other/folder/a.jpg", False),
        ("S3://bucket/folder/a.jpg", False),
        ("file:///s3://bucket/folder/a.jpg", False),
        ("s3://bucket/folder/a\n.jpg", False),
        ("http://169.254.169.254/", False),
        ("", False),
    ],
)
def test_only_what_lies_below_a_folder_is_allowed(uri: str, allowed: bool) -> None:
    assert is_allowed(uri, ["s3://bucket/folder", "gs://x/"]) is allowed
    assert not is_allowed(uri, [])
