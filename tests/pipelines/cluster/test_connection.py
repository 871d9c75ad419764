import os

import pytest
import ray
from ray.cluster_utils import Cluster

from pipelines.cluster import connection
from pipelines.cluster.config import ClusterConfig
from pipelines.cluster.connection import NodeCapacity

# Ray's own context warns: see tests/pipelines/training/test_run.py.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.ray
def test_one_cluster_after_the_other_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of this process alone, then one of several machines whose processes have to reach this one."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for _ in range(2):
        with connection.connect(ClusterConfig(num_cpus=4)):
            assert ray.get(_process_of_a_task()) != os.getpid()
    machines = Cluster(initialize_head=True, connect=False, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        machines.add_node(num_cpus=4)
        with connection.connect(ClusterConfig(address=machines.address)):
            actor = ray.remote(num_cpus=1)(_Machine).remote()
            assert ray.get(actor.process.remote(), timeout=60) != os.getpid()
            assert ray.get(_process_of_a_task(), timeout=60) != os.getpid()
    finally:
        machines.shutdown()


class _Machine:
    def process(self) -> int:
        return os.getpid()


def _process_of_a_task() -> "ray.ObjectRef[int]":
    return ray.remote(num_cpus=1)(lambda: os.getpid()).remote()


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_what_the_user_has_set_stays(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with connection._environment():
        pass
    assert os.environ["RAY_AUTH_MODE"] == mode


@pytest.mark.ray
def test_tasks_may_bring_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_MOST_TASKS", 3)
    arguments = [(number, 2) for number in range(5)]
    results = []
    with connection.connect(ClusterConfig(num_cpus=4)):
        for number, left in connection.on_cluster(lambda number, left: (number, left), arguments):
            results.append(number)
            arguments += [(number + 5, left - 1)] * (left > 0)
    assert sorted(results) == sorted([*range(5), *range(5, 10), *range(10, 15)])


def test_without_ray_nothing_is_known_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert connection.own_node() is None


@pytest.mark.ray
def test_a_process_knows_its_own_node() -> None:
    with connection.connect(ClusterConfig(num_cpus=4)):
        assert connection.own_node() == NodeCapacity(4, 0)
        assert ray.get(ray.remote(connection.own_node).remote()) == NodeCapacity(4, 0)
