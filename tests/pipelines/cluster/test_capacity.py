"""Sums over machines, without any."""

import random
from typing import Any

import pytest

from maskrcnn_core.errors import ConfigError
from pipelines.cluster.capacity import (
    Capacity,
    Demand,
    NodeType,
    describe,
    fits_now,
    placed_ever,
    placed_now,
    require_reachable,
    waiting_line,
)
from pipelines.cluster.devices import chooses_gpu, device_note, idle_note

GPU_MACHINE = {"CPU": 16.0, "GPU": 4.0}
CPU_MACHINE = {"CPU": 8.0}
WORKER = {"CPU": 4.0, "GPU": 1.0}
HEAD: dict[str, float] = {}
TYPES = (NodeType("gpu", GPU_MACHINE, 4), NodeType("cpu", CPU_MACHINE, 2))


def demand(*bundles: dict[str, float]) -> Demand:
    return Demand("train.num_workers", f"{len(bundles)} workers", bundles, "lower train.num_workers")


def refusal(of: Demand, capacity: Capacity) -> str:
    with pytest.raises(ConfigError) as caught:
        require_reachable(of, capacity)
    return str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "bundles", "expected"),
    [
        ([], [], 0),
        ([], [WORKER], 0),
        ([HEAD, GPU_MACHINE], [WORKER] * 4, 4),
        ([GPU_MACHINE], [WORKER] * 5, 4),
        ([{"CPU": 2.0, "GPU": 8.0}], [WORKER], 0),  # GPUs, but not the CPUs beside them
        ([CPU_MACHINE, CPU_MACHINE], [{"CPU": 9.0}], 0),  # 16 CPUs, but on no machine 9
        ([GPU_MACHINE, CPU_MACHINE], [*[WORKER] * 4, *[{"CPU": 1.0}] * 8], 12),
        ([GPU_MACHINE, CPU_MACHINE], [*[{"CPU": 1.0}] * 8, *[WORKER] * 4], 12),  # in the other order too
        ([CPU_MACHINE, GPU_MACHINE], [*[WORKER] * 4, {"CPU": 8.0}], 5),
        ([{"CPU": 0.3}], [{"CPU": 0.1}] * 3, 3),  # 0.3 / 0.1 is a little less than 3
        ([{"GPU": 1.0, "accelerator_type:T4": 1.0}], [{"GPU": 1.0, "accelerator_type:H100": 0.001}], 0),
        ([{"GPU": 1.0, "accelerator_type:H100": 1.0}], [{"GPU": 1.0, "accelerator_type:H100": 0.001}], 1),
    ],
)
def test_how_many_bundles_find_room(nodes: list[Any], bundles: list[Any], expected: int) -> None:
    capacity = Capacity(tuple(nodes))
    assert placed_now(demand(*bundles), capacity) == expected
    assert fits_now(demand(*bundles), capacity) == (expected == len(bundles))


@pytest.mark.parametrize(
    ("nodes", "most_nodes", "bundles", "expected"),
    [
        ([HEAD], None, [WORKER] * 16, 16),  # from nothing
        ([HEAD], None, [WORKER] * 17, 16),
        ([HEAD, GPU_MACHINE], None, [WORKER] * 17, 16),  # a machine that runs is one of the four
        ([HEAD, {"CPU": 32.0, "GPU": 8.0}], None, [WORKER] * 24, 24),  # one of no type comes on top
        ([HEAD], 2, [WORKER] * 16, 8),
        ([HEAD], None, [{"CPU": 8.0}] * 10, 10),  # GPU machines for CPU work, once the others are all taken
        ([HEAD], None, [{"CPU": 17.0}], 0),
    ],
)
def test_how_many_find_room_once_all_is_started(
    nodes: list[Any], most_nodes: int | None, bundles: list[Any], expected: int
) -> None:
    assert placed_ever(demand(*bundles), Capacity(tuple(nodes), TYPES, most_nodes)) == expected


@pytest.mark.parametrize("turn", [1, -1])
def test_few_machines_in_all_are_large_ones_where_that_helps(turn: int) -> None:
    types = (NodeType("small", {"CPU": 4.0, "GPU": 1.0}, 4), NodeType("large", GPU_MACHINE, 2))[::turn]
    assert placed_ever(demand(*[WORKER] * 8), Capacity((), types, most_nodes=3)) == 8
    assert placed_ever(demand({"CPU": 16.0}, {"CPU": 16.0}, *[WORKER] * 4), Capacity((), types)) == 6


def test_any_number_of_machines_hold_any_demand() -> None:
    capacity = Capacity((), (NodeType("gpu", GPU_MACHINE, None),))
    assert placed_ever(demand(*[WORKER] * 10_000), capacity) == 10_000


@pytest.mark.parametrize("seed", range(20))
def test_never_more_than_the_sums_allow(seed: int) -> None:
    dice = random.Random(seed)
    nodes = [{"CPU": float(dice.randint(0, 8)), "GPU": float(dice.randint(0, 2))} for _ in range(5)]
    bundles = [{"CPU": float(dice.randint(1, 4)), "GPU": float(dice.randint(0, 1))} for _ in range(9)]
    placed = placed_now(demand(*bundles), Capacity(tuple(nodes)))
    assert 0 <= placed <= len(bundles)
    dice.shuffle(bundles)
    assert placed_now(demand(*bundles), Capacity(tuple(nodes))) == placed  # whatever the order
    smallest = sum(sorted(bundle["CPU"] for bundle in bundles)[:placed])
    assert smallest <= sum(node["CPU"] for node in nodes)


def test_what_can_never_be_had_is_refused_with_shape_and_number() -> None:
    capacity = Capacity((HEAD,), TYPES, most_nodes=5)
    require_reachable(demand(*[WORKER] * 16), capacity)
    assert refusal(demand(*[WORKER] * 20), capacity) == (
        "train.num_workers: 20 workers need 20 of 4 CPUs and 1 GPU, each on one machine; the Ray cluster can grow to "
        "hold 16 of these 20 (its autoscaler starts: up to 4 gpu with 16 CPUs and 4 GPUs; up to 2 cpu with 8 CPUs, "
        "5 machines in all); lower train.num_workers"
    )
    assert "hold 0 of these 1" in refusal(demand({"CPU": 17.0}), capacity)


def test_a_cluster_whose_limits_nobody_knows_may_yet_get_anything() -> None:
    require_reachable(demand(*[WORKER] * 1000), Capacity((HEAD,)))


def test_a_cluster_of_this_process_is_all_there_will_ever_be() -> None:
    own = Capacity((CPU_MACHINE,), is_own=True)
    assert "1 workers need 1 GPUs, the Ray cluster has 0" in refusal(demand(WORKER), own)
    assert "9 workers need 9 CPUs, the Ray cluster has 8" in refusal(demand(*[{"CPU": 1.0}] * 9), own)
    two = Capacity((CPU_MACHINE, CPU_MACHINE), is_own=True)
    assert "the machines of the Ray cluster (2 of 8 CPUs) have room for 0 of these 1" in refusal(
        demand({"CPU": 9.0}), two
    )


@pytest.mark.parametrize(
    ("nodes", "bundles", "expected"),
    [
        ([HEAD], [WORKER] * 8, "waiting for 8 GPUs: 0 of 8 are there (0 machines)"),
        ([HEAD, {"CPU": 8.0, "GPU": 2.0}], [WORKER] * 8, "waiting for 8 GPUs: 2 of 8 are there (1 machine)"),
        ([CPU_MACHINE], [{"CPU": 1.0}] * 9, "waiting for 9 CPUs: 8 of 9 are there (1 machine)"),
        (
            [{"CPU": 2.0, "GPU": 8.0}],
            [WORKER],
            "waiting for 1 GPU: 1 of 1 are there (1 machine), but not as it needs them: "
            "4 CPUs and 1 GPU on one machine",
        ),
        ([GPU_MACHINE], [WORKER], "waiting for 1 GPU: 1 of 1 are there (1 machine), but other work holds some of them"),
    ],
)
def test_a_wait_says_what_for(nodes: list[Any], bundles: list[Any], expected: str) -> None:
    assert waiting_line(demand(*bundles), Capacity(tuple(nodes))) == expected


def test_resources_in_words() -> None:
    assert describe({"CPU": 1.0, "GPU": 2.0, "accelerator_type:H100": 1.0}) == "1 CPU and 2 GPUs (H100)"
    assert describe({}) == "no CPU"


def test_auto_takes_gpus_that_are_there_or_can_come() -> None:
    none, there = Capacity((CPU_MACHINE,)), Capacity((GPU_MACHINE,))
    to_come = Capacity((HEAD,), TYPES)
    assert [chooses_gpu("auto", one) for one in (none, there, to_come)] == [False, True, True]
    assert chooses_gpu(True, none)
    assert not chooses_gpu(False, there)
    assert not chooses_gpu("auto", Capacity((HEAD,), (NodeType("gpu", GPU_MACHINE, 0),)))


def test_what_was_chosen_and_what_lies_idle_is_said() -> None:
    none, there, to_come = Capacity((CPU_MACHINE,)), Capacity((GPU_MACHINE,)), Capacity((HEAD,), TYPES)
    assert device_note("x", "auto", none) == "computing on CPUs: the Ray cluster has no GPU (x auto)"
    assert device_note("x", "auto", there) == "computing on GPUs: the Ray cluster has 4 (x auto)"
    assert (
        device_note("x", "auto", to_come) == "computing on GPUs: the Ray cluster can start machines with them (x auto)"
    )
    assert device_note("x", False, there) == "4 GPUs lie idle: x is false"
    assert device_note("x", False, Capacity(({"GPU": 1.0},))) == "1 GPU lies idle: x is false"
    assert device_note("x", False, none) is device_note("x", True, there) is None
    assert idle_note("n", 3, there) == "1 GPU lies idle of 4: n is 3"
    assert idle_note("n", 1, there) == "3 GPUs lie idle of 4: n is 1"
    assert idle_note("n", 4, there) is idle_note("n", 9, there) is None
