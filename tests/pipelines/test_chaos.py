"""Labelling under SIGKILL of workers, nodes and drivers. The many rounds are `python -m jobs.benchmark chaos`."""

import pytest

from maskrcnn_core.benchmark_config import ChaosRun
from pipelines.benchmark_chaos import benchmark_chaos

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.ray]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_rounds_lose_repeat_and_tear_nothing() -> None:
    rounds = benchmark_chaos(ChaosRun())
    assert len(rounds) == 10
    for found in rounds:
        assert (found.lost, found.repeated, found.torn, found.different) == (0, 0, 0, 0), found
        assert found.verified, found
    killed = {kind: sum(found.killed[kind] for found in rounds) for kind in ("worker", "node", "driver")}
    assert min(killed.values()) >= 5, killed
