"""The limits of autoscalers, from what describes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay import node_provider
from ray.core.generated import autoscaler_pb2

from pipelines.cluster import autoscaler
from pipelines.cluster.autoscaler import node_types, read_description
from pipelines.cluster.capacity import NodeType

_ADDRESS = "10.0.0.1:6379"


def described(**types: dict[str, Any]) -> dict[str, Any]:
    head = {"head": {"resources": {"CPU": 0}, "max_workers": 0}}
    return {"max_workers": 24, "head_node_type": "head", "available_node_types": {**head, **types}}


def test_types_of_a_description() -> None:
    gpu = {"resources": {"CPU": 16, "GPU": 1, "accelerator_type:L4": 1, "memory": 1e9}, "max_workers": 16}
    assert node_types(described(gpu=gpu, cpu={"resources": {"CPU": 16}}, none={"max_workers": 0})) == (
        NodeType("gpu", {"CPU": 16.0, "GPU": 1.0, "accelerator_type:L4": 1.0}, 16),
        NodeType("cpu", {"CPU": 16.0}, 24),  # no limit of its own
    )
    assert node_types(described()) == ()


def test_a_head_whose_type_has_no_limit_is_no_worker() -> None:
    description = described()
    del description["available_node_types"]["head"]["max_workers"]
    assert node_types(description) == ()


def test_resources_that_are_not_known_yet_are_no_limit() -> None:
    """cluster.yaml leaves them to Ray, which asks AWS."""
    assert node_types(yaml.safe_load(Path("cluster.yaml").read_text())) is None


def test_limits_that_a_hosted_service_has_stored() -> None:
    config = autoscaler_pb2.ClusterConfig()
    for name, most in (("any", -1), ("some", 3), ("none", 0)):
        config.node_group_configs.add(name=name, max_count=most, resources={"CPU": 4, "GPU": 1})
    assert autoscaler._stored_types(config) == (
        NodeType("any", {"CPU": 4.0, "GPU": 1.0}, None),
        NodeType("some", {"CPU": 4.0, "GPU": 1.0}, 3),
    )


def test_the_autoscaler_of_another_cluster_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "autoscaler.yaml"
    config.write_text(json.dumps(described()))

    def start(pid: str, *words: str) -> None:
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "cmdline").write_bytes("\0".join(words).encode() + b"\0")

    monkeypatch.setattr(autoscaler, "_PROCESSES", tmp_path / "proc")
    start("1", "/bin/init")
    start("2", "python", "/ray/monitor.py", "--gcs-address=10.0.0.2:6379", f"--autoscaling-config={config}")
    (tmp_path / "proc" / "3").mkdir()  # it has ended
    start("4", "python", "/ray/monitor.py", f"--gcs-address={_ADDRESS}")  # a cluster that does not grow
    assert read_description(_ADDRESS) is None
    start("5", "python", "/ray/monitor.py", f"--gcs-address={_ADDRESS}", f"--autoscaling-config={config}")
    assert read_description(_ADDRESS) == described()
    config.write_text("- no\n- description")
    assert read_description(_ADDRESS) is None
    config.unlink()
    assert read_description(_ADDRESS) is None


def test_a_cluster_of_kuberay_is_described_by_kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def group(limits: dict[str, str], **more: Any) -> dict[str, Any]:
        container = {"name": "ray", "resources": {"limits": limits}}
        return {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}, **more}

    limits = {"cpu": "8", "nvidia.com/gpu": "1", "memory": "32Gi"}
    spec: dict[str, Any] = {
        "enableInTreeAutoscaling": True,
        "headGroupSpec": {**group({"cpu": "4"}), "rayStartParams": {"num-cpus": "0"}},
        "workerGroupSpecs": [group(limits, groupName="gpu", minReplicas=0, maxReplicas=8)],
    }
    cluster = {"metadata": {"name": "mine", "namespace": "ml"}, "spec": spec}
    asked = []

    class Client:
        def __init__(self, namespace: str) -> None:
            self.namespace = namespace

        def get(self, path: str) -> Any:
            asked.append((self.namespace, path))
            return cluster

    namespace = tmp_path / "namespace"
    monkeypatch.setattr(node_provider, "KubernetesHttpApiClient", Client)
    monkeypatch.setattr(autoscaler, "_KUBERNETES_NAMESPACE", namespace)
    monkeypatch.setattr(autoscaler, "_PROCESSES", tmp_path)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "mine")
    assert read_description(_ADDRESS) is None  # not on Kubernetes
    namespace.write_text("ml\n")
    description = read_description(_ADDRESS)
    assert description is not None
    assert asked == [("ml", "rayclusters/mine")]
    assert node_types(description) == (NodeType("gpu", {"CPU": 8.0, "GPU": 1.0}, 8),)
    assert description["max_workers"] == 8
    del spec["enableInTreeAutoscaling"]
    assert read_description(_ADDRESS) is None
    del cluster["spec"]  # nothing that anybody would know how to read
    assert read_description(_ADDRESS) is None
