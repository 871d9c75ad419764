"""The Ray cluster of a job: join one, or start one on this machine and stop it afterwards."""

import copy
import logging
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from maskrcnn_core.errors import ConfigError, UserError
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.cpus import usable_cpus
from pipelines.cluster.lost_processes import why_lost

# Ray Data starts a pool's actors before its read tasks: with fewer logical CPUs the pool can hold them all, and the
# reads that would feed it wait forever. Logical CPUs cost nothing; threads are set to the physical cores.
MIN_LOCAL_CPUS = 4

# Labels are a few kilobytes per image and no pixels pass through the store: Ray's default (30 % of memory) would
# only take shared memory from the detector.
_LOCAL_OBJECT_STORE_BYTES = 1 << 30

# Ray's session sockets live below this folder and AF_UNIX paths end at 107 bytes.
_LONGEST_TEMP_DIR = 45

_CONNECT_SECONDS = 10.0

# More than any cluster that this project knows has CPUs; each waiting task costs this process some kilobytes.
_MOST_TASKS = 2000

# For tasks to end that are given up.
_END_SECONDS = 10.0

_START_ATTEMPTS = 3
_TIMED_OUT = "timed out during startup"

_QUIET_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TQDM": "0",
    # Each actor pool would print a C++ error line that means nothing here; what fails arrives as a Python exception.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@dataclass(frozen=True)
class NodeCapacity:
    """Logical resources of one live node."""

    cpus: int
    gpus: int


@contextmanager
def connect(
    cluster: ClusterConfig, *, worker_logs: bool = False, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Ray, ready to use inside the block.

    A process that already uses Ray keeps its connection, also afterwards. Otherwise the cluster at `cluster.address`
    or RAY_ADDRESS is joined, or one is started on this machine; on leaving, the connection is closed and a cluster
    started here stops with it.

    Args:
        cluster: which cluster.
        worker_logs: repeat what workers print on this terminal.
        environment: variables for all processes of the job.

    Raises:
        ConfigError: the cluster at the address cannot be joined.
    """
    if ray.is_initialized():
        yield
        return
    with _environment():
        address = cluster.address or os.environ.get("RAY_ADDRESS")
        try:
            with _stderr_unless_failed():
                if address:
                    _join(address, worker_logs, environment or {})
                else:
                    _start(cluster.num_cpus, worker_logs)
            yield
        finally:
            ray.shutdown()


@contextmanager
def unwrapped_errors() -> Iterator[None]:
    """A user's mistake that a worker found is raised as itself, not as Ray's report of it; processes that were lost
    are one line as well."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            # Ray's report of a UserError is an instance of both; its text is a traceback.
            if isinstance(cause, UserError) and not isinstance(cause, ray.exceptions.RayError):
                raise copy.copy(cause) from error
            cause = getattr(cause, "cause", None) or cause.__cause__
        if (reason := why_lost(error)) is not None:
            raise UserError(
                f"the workers were lost: {reason}; the same command goes on where it stopped (with fewer workers, or "
                "smaller batches, they need less memory)"
            ) from error
        raise


def nodes() -> tuple[NodeCapacity, ...]:
    """Capacity of each live node of the connected cluster, biggest first; needs `connect`."""
    capacities = [_capacity(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return tuple(sorted(capacities, key=lambda node: (node.gpus, node.cpus), reverse=True))


def node_ids() -> list[str]:
    """Ray's names of the live nodes of the connected cluster; needs `connect`."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def own_node() -> NodeCapacity | None:
    """Capacity of the node that this process runs on; None without Ray."""
    if not ray.is_initialized():
        return None
    own = ray.get_runtime_context().get_node_id()
    resources = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == own), None)
    return None if resources is None else _capacity(resources)


def on_cluster(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Calls a function with each tuple of arguments in tasks of one CPU; yields what they return as it comes.

    The sequence may grow until the last result has been taken. Up to `_MOST_TASKS` tasks are under way at once, so that
    a million of them need no memory here; how many of these run is the cluster's business, whose machines come and go.
    """
    remote = ray.remote(num_cpus=1)(function)
    waiting: list[Any] = []
    started = 0
    try:
        while waiting or started < len(arguments):
            more = arguments[started : started + _MOST_TASKS - len(waiting)]
            waiting += [remote.remote(*some) for some in more]
            started += len(more)
            ray.wait(waiting, num_returns=1)
            ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            for result in ready:
                yield ray.get(result)
    except ray.exceptions.RayError:
        _end_tasks(waiting)
        raise


def _end_tasks(tasks: Sequence[Any]) -> None:
    """Gives tasks up, whose results nobody will take: they would go on to write into what is cleared away."""
    for task in tasks:
        ray.cancel(task)
    if tasks:
        ray.wait(list(tasks), num_returns=len(tasks), timeout=_END_SECONDS)


def _capacity(resources: Mapping[str, float]) -> NodeCapacity:
    return NodeCapacity(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


@contextmanager
def _environment() -> Iterator[None]:
    """Quiet defaults for Ray and its child processes; what the user has set wins, and all is restored.

    What Ray itself sets stays: it makes tokens the rule where it starts a cluster (RAY_AUTH_MODE), and its compiled
    part keeps to that as long as the process lives. Machines that this process starts later must know it.
    """
    added = {name: value for name, value in _QUIET_ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _stderr_unless_failed() -> Iterator[None]:
    """Holds back what C++ code writes to stderr inside the block; it is shown if the block raises other than a mistake
    of the user, whose reason stands in its line.

    Ray announces there that it has read RAY_BACKEND_LOG_LEVEL, whatever the level.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except UserError:
            raise
        except Exception:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _join(address: str, worker_logs: bool, environment: Mapping[str, str]) -> None:
    try:
        _require_listener(address)
        if not _has_token() and _asks_for_token(address):  # Ray itself would try for half a minute
            raise ray.exceptions.AuthenticationError("no token")
        runtime_env = {"env_vars": dict(environment)} if environment else None
        ray.init(address=address, runtime_env=runtime_env, log_to_driver=worker_logs, logging_level=logging.ERROR)
    except Exception as error:
        if isinstance(error, ray.exceptions.AuthenticationError) or _asks_for_token(address):
            raise ConfigError(
                f"cluster.address: the Ray cluster at {address!r} asks for a token; set RAY_AUTH_MODE=token, "
                "with the token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
            ) from error
        if not isinstance(error, OSError | ValueError | RuntimeError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"cluster.address: cannot join the Ray cluster at {address!r} ({reason}); start it with `ray start --head`,"
            " or unset cluster.address and RAY_ADDRESS to use a cluster of this machine"
        ) from error


def _has_token() -> bool:
    variables = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return any(os.environ.get(name) for name in variables) or os.path.exists(os.path.expanduser("~/.ray/auth_token"))


def _asks_for_token(address: str) -> bool:
    """Whether what listens at host:port is a head of Ray that refuses a call without a token."""
    if "://" in address or not address.rpartition(":")[2].isdigit():
        return False
    import grpc

    with grpc.insecure_channel(address) as channel:
        alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            alive(b"", timeout=_CONNECT_SECONDS)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def _require_listener(address: str) -> None:
    """Raises OSError where nothing answers at host:port, for which Ray itself would wait many minutes."""
    host, separator, port = address.rpartition(":")
    if separator and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def _start(num_cpus: int, worker_logs: bool) -> None:
    """Starts a cluster here; a busy machine may take longer than the half minute that Ray grants a node, so that a
    second and a third try are worth it."""
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            _start_once(num_cpus, worker_logs)
            return
        except Exception as error:  # Ray raises it bare
            ray.shutdown()
            if _TIMED_OUT not in str(error) or attempt == _START_ATTEMPTS:
                raise


def _start_once(num_cpus: int, worker_logs: bool) -> None:
    temp_root = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        ray.init(
            address="local",
            num_cpus=num_cpus or max(MIN_LOCAL_CPUS, usable_cpus()),
            object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=worker_logs,
            logging_level=logging.ERROR,
            _temp_dir="/tmp/ray" if len(temp_root) > _LONGEST_TEMP_DIR else None,
        )
