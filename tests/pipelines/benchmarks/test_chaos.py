"""Labelling under SIGKILL of workers, nodes and drivers, SIGSTOP of workers and full disks.

The many rounds are `python -m jobs.benchmark chaos`."""

import pytest

from pipelines.benchmarks.chaos import benchmark_chaos
from pipelines.benchmarks.config import ChaosRun

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.ray]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_rounds_lose_repeat_and_tear_nothing() -> None:
    rounds = benchmark_chaos(ChaosRun(rounds=10))
    assert len(rounds) == 10
    for found in rounds:
        assert (found.lost, found.repeated, found.torn, found.different) == (0, 0, 0, 0), found
        assert found.verified, found
    killed = {kind: sum(found.killed[kind] for found in rounds) for kind in ("worker", "stop", "node", "driver")}
    assert min(killed.values()) >= 5, killed
