"""Mistakes that a worker found, raised here as themselves."""

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import ray.exceptions
from ray.train import ControllerError, WorkerGroupError

from maskrcnn_core.errors import ConfigError, ImageError, StorageError, UserError
from pipelines.cluster import connection
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.connection import connect, unwrapped_errors
from pipelines.cluster.lost_processes import as_write_error, require_room, why_lost


@pytest.mark.parametrize("mistake", [UserError("no such folder"), ImageError("missing", "no such object")])
def test_a_users_mistake_comes_out_of_rays_report(mistake: UserError) -> None:
    with pytest.raises(type(mistake), match=str(mistake)) as found, unwrapped_errors():
        raise ray.exceptions.RayError from mistake
    assert vars(found.value) == vars(mistake)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ray.exceptions.OutOfMemoryError("node running low on memory"), "ran out of memory"),
        (ControllerError(ray.exceptions.OutOfMemoryError("x")), "ran out of memory"),
        (WorkerGroupError("x", {1: ray.exceptions.WorkerCrashedError()}), "killed or crashed"),
        (ray.exceptions.ActorDiedError(), "killed or crashed"),
        (ray.exceptions.NodeDiedError("x"), "a machine of it was lost"),
        (ray.exceptions.OutOfDiskError("x"), "full"),
        (ControllerError(RuntimeError("a bug")), None),
        (WorkerGroupError("x", {0: ValueError("a bug")}), None),
        (ray.exceptions.RayError("x"), None),
    ],
)
def test_what_was_lost_is_said(error: Exception, reason: str | None) -> None:
    found = why_lost(error)
    assert (found is None) == (reason is None)
    assert reason is None or (found is not None and reason in found)
    if reason is not None and isinstance(error, ray.exceptions.RayError):
        with pytest.raises(UserError, match="the same command goes on where it stopped"), unwrapped_errors():
            raise error


def test_an_error_that_is_its_own_cause_does_not_hang() -> None:
    error = ray.exceptions.RayError("x")
    error.cause = error
    assert why_lost(error) is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_wherever_it_shows(error: Exception, tmp_path: Path) -> None:
    outer = ValueError("about something else")
    outer.__cause__ = error
    with pytest.raises(StorageError, match=r"s3://b/run: No space left on device.* the same command goes on"):
        require_room(outer, "s3://b/run")
    assert "No space left" in str(as_write_error(error, tmp_path / "x", "out"))


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    bug = RuntimeError("CUDA error")
    require_room(bug, "out")
    assert as_write_error(bug, tmp_path, "out") is bug
    mistake = UserError("x: No space left on device")
    require_room(mistake, "out")
    assert as_write_error(mistake, tmp_path, "out") is mistake
    assert "cannot be written: [Errno 5]" in str(as_write_error(OSError(5, "I/O"), tmp_path / "x", "out"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, r"asks for a token; set RAY_AUTH_MODE=token"),
        (grpc.StatusCode.UNIMPLEMENTED, r"cannot join the Ray cluster .* \(no head here\); start it"),
    ],
)
def test_a_cluster_that_asks_for_a_token_is_told_apart_at_once(
    code: grpc.StatusCode, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(code, "no")
        raise AssertionError("unreachable")

    def no_head(**_: object) -> None:
        raise RuntimeError("no head here")

    monkeypatch.setattr(ray, "init", no_head)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection, "_has_token", lambda: False)
    server = grpc.server(ThreadPoolExecutor(1))
    method = grpc.unary_unary_rpc_method_handler(refuse)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", {"CheckAlive": method})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(ConfigError, match=message), connect(ClusterConfig(address=f"127.0.0.1:{port}")):
            pass
    finally:
        server.stop(None)
