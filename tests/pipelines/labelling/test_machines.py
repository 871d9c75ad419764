"""How a labelling run starts on clusters of all kinds: without Ray."""

from typing import Any

import pytest

from maskrcnn_core.errors import ConfigError
from pipelines.cluster import waiting
from pipelines.cluster.capacity import Capacity, Demand, NodeType
from pipelines.labelling import machines
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.machines import on_this_cluster

HEAD: dict[str, float] = {}
MACHINE = {"CPU": 16.0, "GPU": 4.0}
GROWING = Capacity((HEAD,), (NodeType("gpu", MACHINE, 4), NodeType("cpu", {"CPU": 8.0}, 2)), most_nodes=6)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[Demand]:
    """What was waited for; it comes at once."""
    demands: list[Demand] = []
    monkeypatch.setattr(machines, "wait_for_machines", lambda demand, *_: demands.append(demand))
    return demands


def fitted(capacity: Capacity, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[LabelConfig, list[str]]:
    told: list[str] = []
    monkeypatch.setattr(machines, "read_capacity", lambda: capacity)
    return on_this_cluster(LabelConfig(**settings), told.append), told


@pytest.mark.parametrize(
    ("capacity", "settings", "use_gpu", "bundles", "max_workers"),
    [
        # machines that are there are used, and no others asked for
        (Capacity((HEAD, MACHINE), GROWING.node_types), {}, True, None, 0),
        (Capacity(({"CPU": 8.0},)), {}, False, None, 0),
        (Capacity(({"CPU": 1.0},), is_own=True), {}, False, None, 0),  # the plan refuses it, with its own line
        # from nothing: the first worker, then as many as there can be
        (GROWING, {}, True, [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}], 16),
        (GROWING, {"threads_per_worker": 4}, True, [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 1.0}], 16),
        (GROWING, {"workers_per_gpu": 2}, True, [{"CPU": 1.0, "GPU": 0.5}, {"CPU": 1.0}], 32),
        # on CPUs as many as the smallest machine has beside its tasks, at most 8
        (GROWING, {"use_gpu": False}, False, [{"CPU": 6.0}, {"CPU": 1.0}], 4 * 2 + 2 * 1),
        (Capacity((HEAD,), (NodeType("cpu", {"CPU": 96.0}, 2),)), {}, False, [{"CPU": 8.0}, {"CPU": 1.0}], 24),
        (GROWING, {"max_workers": 3}, True, [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}], 3),
        (GROWING, {"num_workers": 2}, True, [*[{"CPU": 1.0, "GPU": 1.0}] * 2, {"CPU": 1.0}], 0),
        (Capacity((HEAD,)), {}, False, [{"CPU": 1.0}, {"CPU": 1.0}], 0),  # nobody knows the limits
        (Capacity((HEAD,)), {"use_gpu": True}, True, [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}], 0),
        # without waiting, Ray Data asks for the machines where their number is given
        (GROWING, {"max_workers": 3, "wait_minutes": 0.0}, True, None, 3),
    ],
)
def test_a_run_waits_for_its_first_workers(
    monkeypatch: pytest.MonkeyPatch,
    waits: list[Demand],
    capacity: Capacity,
    settings: dict[str, Any],
    use_gpu: bool,
    bundles: list[Any] | None,
    max_workers: int,
) -> None:
    label, _ = fitted(capacity, monkeypatch, **settings)
    assert [list(demand.bundles) for demand in waits] == ([] if bundles is None else [bundles])
    assert (label.use_gpu, label.max_workers) == (use_gpu, max_workers)


def test_what_lies_idle_is_said(monkeypatch: pytest.MonkeyPatch, waits: list[Demand]) -> None:
    there = Capacity((MACHINE,))
    assert fitted(there, monkeypatch, use_gpu=False)[1] == ["4 GPUs lie idle: label.use_gpu is false"]
    assert fitted(there, monkeypatch, use_gpu=True, num_workers=3)[1] == [
        "1 GPU lies idle of 4: label.num_workers is 3"
    ]
    assert fitted(there, monkeypatch, use_gpu=True, num_workers=5, workers_per_gpu=2)[1] == [
        "1 GPU lies idle of 4: label.num_workers is 5"
    ]
    assert fitted(there, monkeypatch, use_gpu=True)[1] == []


def test_what_an_autoscaler_can_never_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "read_capacity", lambda: GROWING)
    with pytest.raises(ConfigError, match=r"label.num_workers: 17 workers .* can grow to hold 17 of these 18"):
        fitted(GROWING, monkeypatch, num_workers=17)
