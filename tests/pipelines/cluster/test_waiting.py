"""When a wait for machines speaks, and when it ends: without Ray."""

import pytest

from maskrcnn_core.errors import ConfigError
from pipelines.cluster import waiting
from pipelines.cluster.capacity import Capacity, Demand, NodeType
from pipelines.cluster.waiting import Patience, wait_for_machines

DEMAND = Demand("train.num_workers", "2 workers", ({"CPU": 1.0, "GPU": 1.0},) * 2, "lower train.num_workers")
NOTHING, HALF = Capacity(({},)), Capacity(({"CPU": 4.0, "GPU": 1.0},))
ALL = Capacity(({"CPU": 4.0, "GPU": 2.0},))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def patience(minutes: float = 10.0) -> tuple[Patience, Clock, list[str]]:
    clock, told = Clock(), []  # type: ignore[var-annotated]
    return Patience(DEMAND, "train.wait_minutes", minutes, told.append, clock), clock, told


def test_news_are_told_at_once_and_the_rest_once_a_minute() -> None:
    waits, clock, told = patience()
    for clock.now in (0.0, 2.0, 59.0):
        waits.go_on(NOTHING)
    assert told == ["waiting for 2 GPUs: 0 of 2 are there (0 machines); for up to 10 more minutes (train.wait_minutes)"]
    clock.now = 60.0
    waits.go_on(NOTHING)
    clock.now = 61.0
    waits.go_on(HALF)
    clock.now = 62.0
    waits.go_on(HALF)
    assert [line.split(";")[0] for line in told[1:]] == [
        "waiting for 2 GPUs: 0 of 2 are there (0 machines)",
        "waiting for 2 GPUs: 1 of 2 are there (1 machine)",
    ]
    assert told[1].endswith("for up to 9 more minutes (train.wait_minutes)")


def test_machines_that_have_just_come_are_not_said_to_be_busy() -> None:
    waits, clock, told = patience()
    waits.go_on(ALL)
    assert told == []
    clock.now = 2.0
    waits.go_on(ALL)
    assert told[0].startswith("waiting for 2 GPUs: 2 of 2 are there (1 machine), but other work holds some of them; ")


def test_a_wait_ends_with_what_was_missing() -> None:
    waits, clock, _ = patience(minutes=0.5)
    waits.go_on(HALF)
    clock.now = 30.0
    with pytest.raises(ConfigError) as caught:
        waits.go_on(HALF)
    assert str(caught.value) == (
        "train.num_workers: 2 workers need 2 GPUs, the Ray cluster has 1 after 0.5 minutes of waiting "
        "(train.wait_minutes); lower train.num_workers; or repeat the command once the machines are there"
    )
    with pytest.raises(ConfigError, match=r"other work holds what it needs after 0.5 minutes"):
        waits.go_on(ALL)


def test_a_new_wait_has_all_its_time() -> None:
    waits, clock, told = patience(minutes=1.0)
    waits.go_on(NOTHING)
    clock.now = 59.0
    waits.reset()
    clock.now = 100.0
    waits.go_on(NOTHING)
    clock.now = 159.0
    waits.go_on(NOTHING)
    assert len(told) == 2


@pytest.mark.parametrize(
    ("capacity", "minutes", "message"),
    [
        (Capacity(({"CPU": 4.0},), is_own=True), 30.0, "2 workers need 2 GPUs, the Ray cluster has 0; lower"),
        (Capacity(({},), (NodeType("gpu", {"CPU": 4.0, "GPU": 1.0}, 1),)), 30.0, "can grow to hold 1 of these 2"),
        (NOTHING, 0.0, r"2 workers need 2 GPUs, the Ray cluster has 0 \(train.wait_minutes\)"),
    ],
)
def test_what_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capacity: Capacity, minutes: float, message: str
) -> None:
    monkeypatch.setattr(waiting, "read_capacity", lambda: capacity)
    with pytest.raises(ConfigError, match=message):
        wait_for_machines(DEMAND, "train.wait_minutes", minutes, print)


@pytest.mark.parametrize("minutes", [0.0, 30.0])
def test_a_cluster_of_this_process_that_has_room_is_not_asked(monkeypatch: pytest.MonkeyPatch, minutes: float) -> None:
    monkeypatch.setattr(waiting, "read_capacity", lambda: Capacity(ALL.nodes, is_own=True))
    wait_for_machines(DEMAND, "train.wait_minutes", minutes, print)
