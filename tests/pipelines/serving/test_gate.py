"""Keys, rates, the number of requests at once, and time: in front of a detector that does as it is told."""

import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.records.labels import ImageRecord
from pipelines.serving.config import ServeConfig
from pipelines.serving.detector_feed import Detected, DetectorLost
from pipelines.serving.detector_service import ServedModel
from pipelines.serving.keys import read_keys
from pipelines.serving.request_rates import RequestRates
from tests.pipelines.serving.local_service import LocalServer, local_server, picture


class WaitingDetector:
    """Answers once it is let; counts what it works on."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.under_way = self.cancelled = 0
        self.error: Exception | None = None

    async def detect(self, content: bytes) -> Detected:
        self.under_way += 1
        try:
            while not self.may_answer.is_set():
                await asyncio.sleep(0.005)
            if self.error is not None:
                raise self.error
            return Detected(ImageRecord("ok", None, 90, 60), "model", 0.0, 0.0, 0.0, 1)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1

    async def describe(self) -> ServedModel:
        return ServedModel("none", "model", ((1, "one"),), None, False)


@pytest.fixture
def detector() -> WaitingDetector:
    return WaitingDetector()


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


# Full.


def test_what_is_too_much_is_told_to_come_again(detector: WaitingDetector) -> None:
    with local_server({"a": detector}, ServeConfig(max_requests=3)) as server, ThreadPoolExecutor(20) as clients:
        first = [clients.submit(server.ask, "/v1/detect", picture()) for _ in range(3)]
        wait_until(lambda: detector.under_way == 3)
        refused = list(clients.map(lambda _: server.ask("/v1/detect", picture()), range(15)))
        assert {reply.status for reply in refused} == {503}
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        assert server.ask("/healthz").status == server.ask("/metrics").status == 200
        detector.may_answer.set()
        assert [one.result().status for one in first] == [200] * 3
        assert server.ask("/v1/detect", picture()).status == 200


def test_bodies_that_fill_the_memory_are_told_to_come_again(
    detector: WaitingDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.serving.gate._MOST_BYTES_HELD", 30_000)
    body = picture(8, 8, kind="BMP") + bytes(20_000)
    with local_server({"a": detector}) as server, ThreadPoolExecutor(1) as clients:
        first = clients.submit(server.ask, "/v1/detect", body)
        wait_until(lambda: detector.under_way == 1)
        reply = server.ask("/v1/detect", body)
        assert (reply.status, "memory" in reply.json["detail"]) == (503, True)
        detector.may_answer.set()
        assert first.result().status == 200
        assert server.ask("/v1/detect", body).status == 200


# Time.


def test_time_is_ours_and_not_the_clients(detector: WaitingDetector) -> None:
    with local_server({"a": detector}, ServeConfig(timeout=0.3)) as server:
        for headers in ({}, {"x-request-timeout-seconds": "0"}, {"x-request-disconnect-disabled": "?1"}):
            reply = server.ask("/v1/detect", picture(), headers)
            assert (reply.status, reply.json["title"]) == (504, "Gateway Timeout")
            assert "retry-after" in reply.headers
        assert (detector.under_way, detector.cancelled) == (0, 3)


def test_a_body_that_stops_coming_is_given_up(detector: WaitingDetector) -> None:
    with local_server({"a": detector}, ServeConfig(timeout=0.3)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
            assert connection.recv(12) == b"HTTP/1.1 408"
        assert server.guarded.gate._under_way == 0


def test_a_client_that_leaves_is_not_worked_for(detector: WaitingDetector) -> None:
    with local_server({"a": detector}, ServeConfig(timeout=0.5)) as server:
        body = picture()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = b"POST /v1/detect HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body)
            wait_until(lambda: detector.under_way == 1)
        wait_until(lambda: detector.under_way == 0)


# A detector in trouble.


def test_a_lost_detector_is_told_as_busy(detector: WaitingDetector) -> None:
    detector.error = DetectorLost("CUDA error at /home/secret.py")
    detector.may_answer.set()
    with local_server({"a": detector}) as server:
        reply = server.ask("/v1/detect", picture())
        assert (reply.status, "secret" in reply.json["detail"]) == (503, False)
        assert "retry-after" in reply.headers


def test_what_goes_wrong_inside_stays_inside(detector: WaitingDetector, caplog: pytest.LogCaptureFixture) -> None:
    detector.error = RuntimeError("password in /home/secret.py")
    detector.may_answer.set()
    with local_server({"a": detector}) as server:
        reply = server.ask("/v1/detect", picture(), {"x-request-id": "mine-7"})
        assert reply.status == 500
        assert (reply.json["request_id"], "secret" in reply.json["detail"]) == ("mine-7", False)
    assert "mine-7" in caplog.text


# Keys.


@pytest.fixture
def guarded(detector: WaitingDetector, tmp_path: Path) -> Iterator[LocalServer]:
    digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in {"ann": "k1", "bob": "k2"}.items()}
    file = tmp_path / "keys"
    file.write_text("# of the office\n" + "".join(f"{name} {digest}\n" for name, digest in digests.items()))
    detector.may_answer.set()
    with local_server({"a": detector}, ServeConfig(keys=str(file), requests_per_minute=3)) as server:
        yield server


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer k3", 401),
        ("Basic k1", 401),
        ("Bearer k1 k2", 401),
        (f"Bearer {'k' * 5000}", 401),
        ("Bearer k\xfc", 401),
        ("Bearer k1", 200),
        ("bearer   k2", 200),
        ("Basic YW5uOmsx", 200),  # ann:k1
        ("Basic YW5uOmsz", 401),  # ann:k3
        ("Basic azE=", 401),  # k1
        ("Basic =", 401),
    ],
)
def test_a_key_is_asked_for(guarded: LocalServer, authorization: str | None, status: int) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    reply = guarded.ask("/v1/detect", picture(), headers)
    assert reply.status == status
    assert (status == 401) == ("www-authenticate" in reply.headers)


def test_without_a_key_there_is_the_page_and_health(guarded: LocalServer) -> None:
    paths = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/v1/models", "/metrics")
    assert [guarded.ask(path).status for path in paths] == [200, 200, 200, 200, 200, 401, 401]
    assert guarded.ask("/page/none.js").status == 404


def test_a_key_has_its_rate(guarded: LocalServer) -> None:
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in ("k1", "k2"))
    assert [guarded.ask("/v1/models", headers=ann).status for _ in range(5)] == [200, 200, 200, 429, 429]
    refused = guarded.ask("/v1/models", headers=ann)
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert guarded.ask("/v1/models", headers=bob).status == 200


def test_a_bucket_fills_evenly() -> None:
    now = [0.0]
    rates = RequestRates(60, clock=lambda: now[0])
    assert [rates.wait_of("a") for _ in range(61)] == [0.0] * 60 + [1.0]
    assert rates.wait_of("b") == 0
    now[0] = 0.5
    assert rates.wait_of("a") == pytest.approx(0.5)
    now[0] = 1.5
    assert rates.wait_of("a") == 0
    assert rates.wait_of("a") == pytest.approx(0.5)
    assert RequestRates(0).wait_of("a") == 0


@pytest.mark.parametrize(
    "text", ["", "# none\n", "ann k1\n", f"ann {'0' * 63}\n", f"a {'0' * 64}\na {'1' * 64}\n", "\xff"]
)
def test_a_file_that_holds_no_keys_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"serve\.keys"):
        read_keys(str(tmp_path / "keys"))
    with pytest.raises(ConfigError, match=r"serve\.keys"):
        read_keys(str(tmp_path / "none"))
