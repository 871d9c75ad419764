"""What the connected cluster has, and what its autoscaler may still start.

Ray tells the limits of its autoscaler only where a hosted service has stored them. Elsewhere they stand in the file
that the autoscaler was started with, on the head's machine (`ray up` and `ray start --autoscaling-config`), or in
Kubernetes' description of the cluster (KubeRay), which the head's pod may read.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import yaml

from pipelines.cluster.capacity import Capacity, NodeType, Resources

_KINDS = ("CPU", "GPU", "accelerator_type:")
_HEAD = "node:__internal_head__"
_READ_SECONDS = 60.0

_MONITOR = b"monitor.py"
_GCS_OPTION, _CONFIG_OPTION = b"--gcs-address=", b"--autoscaling-config="
_PROCESSES = Path("/proc")
_KUBERNETES_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def read_capacity() -> Capacity:
    """Nodes and limits of the connected cluster; needs `connect`."""
    nodes = live_nodes()
    if is_own_cluster():
        return Capacity(nodes, is_own=True)
    config = ray._private.state.state.get_cluster_config()
    if config is not None and config.node_group_configs:
        return Capacity(nodes, _stored_types(config))
    description = _read_on_head()
    if description is None or (types := node_types(description)) is None:
        return Capacity(nodes)
    return Capacity(nodes, types, description.get("max_workers"))


def live_nodes() -> tuple[Resources, ...]:
    """Resources of each live node of the connected cluster."""
    return tuple(_chosen(node["Resources"]) for node in ray.nodes() if node["Alive"])


def is_own_cluster() -> bool:
    """Whether this process has started the cluster that it uses."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.is_head())


def node_types(description: Mapping[str, Any]) -> tuple[NodeType, ...] | None:
    """The machines that an autoscaler may start.

    Args:
        description: the autoscaler's configuration, as `ray up` writes it onto the head.

    Returns:
        Types with their limits, the head's left out; None where the resources of one are not known.
    """
    most = description.get("max_workers")
    types = []
    for name, given in description["available_node_types"].items():
        limit = given.get("max_workers", most)
        if limit == 0 or (name == description.get("head_node_type") and not given.get("max_workers")):
            continue
        resources = given.get("resources") or {}
        if "CPU" not in resources:  # found out from the instance type, and not yet
            return None
        types.append(NodeType(name, _chosen(resources), limit))
    return tuple(types)


def _stored_types(config: Any) -> tuple[NodeType, ...]:
    return tuple(
        NodeType(group.name, _chosen(group.resources), None if group.max_count < 0 else group.max_count)
        for group in config.node_group_configs
        if group.max_count != 0
    )


def _chosen(resources: Mapping[str, float]) -> Resources:
    return {name: float(amount) for name, amount in resources.items() if name.startswith(_KINDS) and amount > 0}


def _read_on_head() -> dict[str, Any] | None:
    """The autoscaler's configuration, read where it runs; None where there is none to be read."""
    heads = [node["NodeID"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"]]
    address = ray.get_runtime_context().gcs_address
    if not heads or ray.get_runtime_context().get_node_id() == heads[0]:
        return read_description(address)
    task = ray.remote(read_description).options(num_cpus=0, label_selector={"ray.io/node-id": heads[0]})
    try:
        description: dict[str, Any] | None = ray.get(task.remote(address), timeout=_READ_SECONDS)
    except ray.exceptions.RayError:  # a head that runs no tasks: limits that nobody knows
        return None
    return description


def read_description(address: str) -> dict[str, Any] | None:
    """The configuration of the autoscaler of a cluster, on the machine of its head.

    Args:
        address: host:port of the cluster's GCS.
    """
    path = _config_of_monitor(address)
    if path is None:
        return _kubernetes_description()
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) and "available_node_types" in found else None


def _config_of_monitor(address: str) -> Path | None:
    """The file that the autoscaler's process names in its command line."""
    for process in _PROCESSES.glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            continue
        if not any(word.endswith(_MONITOR) for word in words) or _GCS_OPTION + address.encode() not in words:
            continue
        for word in words:
            if word.startswith(_CONFIG_OPTION):
                return Path(os.fsdecode(word[len(_CONFIG_OPTION) :])).expanduser()
    return None


def _kubernetes_description() -> dict[str, Any] | None:
    """Of a cluster that KubeRay has made, in the form of the autoscaler's configuration; None elsewhere."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or not _KUBERNETES_NAMESPACE.exists():
        return None
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    try:
        client = node_provider.KubernetesHttpApiClient(_KUBERNETES_NAMESPACE.read_text().strip())
        cluster = client.get(f"rayclusters/{name}")
        if not cluster["spec"].get("enableInTreeAutoscaling"):
            return None
        found: dict[str, Any] = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
    except Exception:  # the pod may not ask, or Ray reads the description differently: limits that nobody knows
        return None
    return found
