"""A Ray cluster whose own autoscaler starts and stops machines, all of them processes on this one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pipelines.submission import free_port, stop, wait_for_listener
from tests.pipelines.vanishing_machines import VanishingMachines
from tests.processes import descendants

_HEAD_TYPE = "ray.head.default"  # Ray's name for it in its provider of machines that are processes
_STORE = 80 * 2**20

_EMPTY: dict[str, Any] = {
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


@dataclass(frozen=True)
class GrowingCluster:
    """A running cluster.

    Attributes:
        address: of its GCS.
        head: the process `ray start --head --block`.
    """

    address: str
    head: "subprocess.Popen[bytes]"

    def machines(self) -> list[int]:
        """Process ids of the raylets that the autoscaler has started."""
        monitors = [pid for pid in descendants(self.head.pid) if b"monitor.py" in command(pid)]
        below = {child for monitor in monitors for child in descendants(monitor)}
        return sorted(pid for pid in below if command(pid).split(b"\0")[0].endswith(b"/raylet"))

    def lose(self, raylet: int) -> None:
        """A machine vanishes without notice, as on spot."""
        for pid in [*descendants(raylet), raylet]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@contextmanager
def growing_cluster(node_types: Mapping[str, Mapping[str, Any]]) -> Iterator[GrowingCluster]:
    """A head without CPUs, and an autoscaler that starts nothing before it is asked for.

    Args:
        node_types: resources of one machine and `most` of them, by name.
    """
    port = free_port()
    # Short, because Ray's sockets lie below it and their paths end at 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    config = folder / "autoscaler.yaml"
    config.write_text(json.dumps(_configuration(node_types, f"127.0.0.1:{port}")))
    options: dict[str, object] = {
        "port": port,
        "node-ip-address": "127.0.0.1",
        "num-cpus": 0,
        "object-store-memory": _STORE,
        "include-dashboard": "false",
        "autoscaling-config": config,
        "temp-dir": folder / "t",
    }
    environment = {
        **os.environ,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),  # the autoscaler imports its provider
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SCHEDULER_EVENTS": "0",
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += [f"--{name}={value}" for name, value in options.items()]
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_listener(port, head)
        yield GrowingCluster(f"127.0.0.1:{port}", head)
    finally:
        stop(head)
        shutil.rmtree(folder, ignore_errors=True)


def _configuration(node_types: Mapping[str, Mapping[str, Any]], address: str) -> dict[str, Any]:
    types = {
        name: {
            "resources": {**kind["resources"], "object_store_memory": _STORE},
            "node_config": {},
            "min_workers": 0,
            "max_workers": kind["most"],
        }
        for name, kind in node_types.items()
    }
    return {
        "cluster_name": "growing",
        "max_workers": sum(kind["most"] for kind in node_types.values()),
        "upscaling_speed": 1000.0,
        "idle_timeout_minutes": 1.0,
        "provider": {
            "type": "external",
            "module": f"{VanishingMachines.__module__}.{VanishingMachines.__name__}",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": _HEAD_TYPE,
        "available_node_types": {**types, _HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}},
        **_EMPTY,
    }


def command(pid: int) -> bytes:
    """The command line of a process, its words apart by zeros; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""
