"""A machine is about to be taken away: the run makes a checkpoint at once, says so, and goes on.

The notice is Ray's own: a node of a cluster on this machine is drained as a provider's spot notice drains it.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from jobs.train import event_line
from pipelines.cluster import connection
from pipelines.cluster.config import ClusterConfig
from pipelines.training.checkpoint_store import list_checkpoints
from pipelines.training.config import TrainRun
from pipelines.training.events import CheckpointSaved, MachineLeaves, StepReport, TrainingEvent, TrainingStarted
from pipelines.training.output import resume_uri
from pipelines.training.run import train
from pipelines.training.sample_log import read_samples
from tests.pipelines.training.test_equivalence import unvalidated
from tests.pipelines.training.test_run import write_data
from tests.processes import descendants

# Ray Train makes Ray Data's default context, which warns of settings that it gives itself; DDP and Ray do likewise.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.ray]

STEPS = 300


_NODE: dict[str, Any] = {"num_cpus": 4, "object_store_memory": 100 * 2**20}


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs; Ray Train looks for notices often."""
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.2")
    head = {**_NODE, "num_cpus": 0, "include_dashboard": False}
    found = Cluster(initialize_head=True, connect=False, head_node_args=head)
    try:
        yield found
    finally:
        found.shutdown()


def give_notice(machines: Cluster, node: Any) -> None:
    """Drain a node, as a provider's notice of ten minutes does."""
    accepted, reason = ray._raylet.GcsClient(address=machines.address).drain_node(
        node.node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "the provider takes it back",
        int((time.time() + 600.0) * 1000),
    )
    assert accepted, reason


def run_of(tmp_path: Path, steps: int) -> TrainRun:
    """A run that makes no checkpoint of its own accord before its last step."""
    source = write_data(tmp_path / "data")
    return unvalidated(tmp_path / "run", source, steps=steps, log_every=1, checkpoint_every=steps)


@pytest.mark.slow  # a cluster of its own, and many steps: Ray has to see the notice while they go on
def test_a_notice_makes_a_checkpoint_and_the_run_goes_on(machines: Cluster, tmp_path: Path) -> None:
    node = machines.add_node(**_NODE)
    run = run_of(tmp_path, STEPS)
    events: list[TrainingEvent] = []

    def notice_at_the_first_step(event: TrainingEvent) -> None:
        if isinstance(event, StepReport) and not any(isinstance(earlier, StepReport) for earlier in events):
            give_notice(machines, node)
        events.append(event)

    with connection.connect(ClusterConfig(address=machines.address)):
        summary = train(run, notice_at_the_first_step)

    (leaving,) = [event for event in events if isinstance(event, MachineLeaves)]  # one notice is told once
    assert 1 <= leaving.step < STEPS
    assert event_line(leaving) == f"a machine of this run will be taken away: checkpoint at step {leaving.step}"
    saved = [event.step for event in events if isinstance(event, CheckpointSaved)]
    assert saved == [leaving.step, STEPS]
    # The checkpoint is safe before the next step is reported: the machine may be gone by then.
    steps = [event for event in events if isinstance(event, MachineLeaves | CheckpointSaved | StepReport)]
    places = {type(event): place for place, event in reversed(list(enumerate(steps))) if event.step >= leaving.step}
    assert places[MachineLeaves] < places[CheckpointSaved]
    after = next(place for place, event in enumerate(steps) if event.step == leaving.step + 1)
    assert places[CheckpointSaved] < after
    assert sorted(stored.step for stored in list_checkpoints(resume_uri(run.output))) == [leaving.step, STEPS]
    assert summary.steps == STEPS
    assert [event.step for event in events if isinstance(event, TrainingStarted)] == [
        0
    ]  # it went on, it did not restart
    assert sorted(read_samples(run.output)) == list(range(STEPS))


@pytest.mark.slow  # a cluster of its own whose workers start twice
def test_what_was_done_before_the_notice_outlives_the_machine(machines: Cluster, tmp_path: Path) -> None:
    nodes = [machines.add_node(**_NODE) for _ in range(2)]
    run = run_of(tmp_path, STEPS)
    events: list[TrainingEvent] = []

    def take_the_machine_away(event: TrainingEvent) -> None:
        if isinstance(event, StepReport) and not any(isinstance(earlier, StepReport) for earlier in events):
            give_notice(machines, where_training_runs(nodes))
        if isinstance(event, CheckpointSaved) and event.step < STEPS:
            machines.remove_node(where_training_runs(nodes), allow_graceful=False)
        events.append(event)

    with connection.connect(ClusterConfig(address=machines.address)):
        summary = train(run, take_the_machine_away)

    noticed = next(event.step for event in events if isinstance(event, MachineLeaves))
    assert [event.step for event in events if isinstance(event, TrainingStarted)] == [0, noticed]
    assert (summary.resumed_from, summary.steps) == (noticed, STEPS)
    assert sorted(read_samples(run.output)) == list(range(STEPS))


def where_training_runs(nodes: list[Any]) -> Any:
    """The node with the worker: a child of its raylet."""

    def has_worker(node: Any) -> bool:
        below = descendants(node.all_processes["raylet"][0].process.pid)
        return any(b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in below)

    return next(node for node in nodes if has_worker(node))
