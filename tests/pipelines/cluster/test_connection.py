import os

import pytest
import ray

from pipelines.cluster import connection
from pipelines.cluster.config import ClusterConfig


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # see tests/pipelines/training/test_run.py
def test_one_cluster_after_the_other_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for _ in range(2):  # Ray sets the variable when it starts a cluster, and goes by it when it joins another one
        with connection.connect(ClusterConfig(num_cpus=4)):
            assert ray.get(ray.remote(num_cpus=1)(lambda: os.getpid()).remote()) != os.getpid()
        assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_what_the_user_has_set_stays(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with connection._environment():
        pass
    assert os.environ["RAY_AUTH_MODE"] == mode
