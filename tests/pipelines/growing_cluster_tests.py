"""Labelling and training on a cluster that has no machine before it is asked for one, and that loses some.

Ray's own autoscaler starts and stops the machines, which are processes here; their GPUs are numbers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from maskrcnn_core.errors import ConfigError
from pipelines.cluster import connection
from pipelines.cluster.autoscaler import read_capacity
from pipelines.cluster.capacity import NodeType
from pipelines.cluster.config import ClusterConfig
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.progress import LabelProgress
from pipelines.labelling.run import label
from pipelines.training.events import (
    CheckpointSaved,
    ClusterNote,
    TrainingEvent,
    TrainingStarted,
    WaitingForMachines,
    WorkersLost,
)
from pipelines.training.run import train
from pipelines.training.sample_log import read_samples
from tests.pipelines.fake_detector import FAKE, write_images
from tests.pipelines.growing_cluster import GrowingCluster, command, growing_cluster
from tests.pipelines.training.test_equivalence import unvalidated
from tests.pipelines.training.test_run import write_data
from tests.processes import descendants

# Ray Train makes Ray Data's default context, which warns of settings that it gives itself; DDP and Ray do likewise.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.ray,
    pytest.mark.slow,  # a cluster of its own, whose machines take seconds to start
]

STEPS = 80


@pytest.fixture
def cluster() -> Iterator[GrowingCluster]:
    """One for each test, since a machine that is idle stays for a minute."""
    types = {
        "gpu": {"resources": {"CPU": 2, "GPU": 1}, "most": 2},
        "cpu": {"resources": {"CPU": 1}, "most": 2},
    }
    with growing_cluster(types) as machines, connection.connect(ClusterConfig(address=machines.address)):
        yield machines


def test_the_limits_of_the_autoscaler_are_known(cluster: GrowingCluster) -> None:
    capacity = read_capacity()
    assert capacity.node_types == (
        NodeType("gpu", {"CPU": 2.0, "GPU": 1.0}, 2),
        NodeType("cpu", {"CPU": 1.0}, 2),
    )
    assert (capacity.most_nodes, capacity.is_own) == (4, False)


def test_what_can_never_be_had_is_refused_at_once(cluster: GrowingCluster, tmp_path: Path) -> None:
    source = write_data(tmp_path / "data")
    run = unvalidated(tmp_path / "run", source, num_workers=5, batch_size=5, use_gpu=True)
    with pytest.raises(ConfigError, match=r"5 of 1 CPU and 1 GPU, .* can grow to hold 2 of these 5 \(its autoscaler"):
        train(run)
    assert not Path(run.output).exists()
    assert not cluster.machines()


def test_labelling_starts_from_nothing_and_outlives_a_machine(cluster: GrowingCluster, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 80)
    settings = LabelConfig(rows_per_file=2, wait_minutes=3.0)
    run = LabelRun("slow", str(tmp_path / "images"), str(tmp_path / "out"), label=settings)
    notes: list[str] = []
    lost: list[int] = []

    def lose_a_machine(progress: LabelProgress) -> None:
        if progress.done >= 10 and not lost:
            lost.append(cluster.machines()[0])
            cluster.lose(lost[0])

    summary = label(run, lose_a_machine, detector=FAKE, on_note=notes.append)
    assert notes[0] == ("computing on GPUs: the Ray cluster can start machines with them (label.use_gpu auto)")
    assert notes[1].startswith("waiting for 1 GPU: 0 of 1 are there (0 machines); for up to 3 more minutes")
    assert lost
    assert (summary.images, summary.failed) == (80, 0)
    files = sorted(Path(summary.labels).glob("*.parquet"))
    assert sum(pq.read_metadata(file).num_rows for file in files) == 80


def test_training_starts_from_nothing_waits_for_lost_machines_and_finishes(
    cluster: GrowingCluster, tmp_path: Path
) -> None:
    source = write_data(tmp_path / "data")
    settings: dict[str, Any] = {"num_workers": 2, "batch_size": 2, "steps": STEPS, "checkpoint_every": 4}
    run = unvalidated(tmp_path / "run", source, **settings, use_gpu=False, max_failures=1, wait_minutes=3.0)
    events: list[TrainingEvent] = []
    losses = 0

    def lose_a_machine(event: TrainingEvent) -> None:
        """One after the first checkpoint of the first start, and one after the first of the second: events come a
        second late, and others may have been saved meanwhile."""
        nonlocal losses
        events.append(event)
        starts = [type(event) for event in events].count(TrainingStarted)
        if isinstance(event, CheckpointSaved) and losses < min(starts, 2):
            losses += 1
            cluster.lose(next(machine for machine in cluster.machines() if _holds_a_worker(machine)))

    summary = train(run, lose_a_machine)
    assert summary.steps == STEPS
    assert sorted(read_samples(run.output)) == list(range(STEPS))
    waits = [event.text for event in events if isinstance(event, WaitingForMachines)]
    assert any(line.startswith("waiting for 2 CPUs: ") for line in waits)
    starts = [event.step for event in events if isinstance(event, TrainingStarted)]
    assert starts[0] == 0
    assert 4 <= starts[1] < starts[2]  # two losses with a checkpoint in between, and one failure in a row allowed
    assert [type(event) for event in events].count(WorkersLost) == 2
    notes = [event.text for event in events if isinstance(event, ClusterNote)]
    assert all("lie idle: train.use_gpu is false" in note for note in notes)


def _holds_a_worker(raylet: int) -> bool:
    return any(b"RayTrainWorker" in command(pid) for pid in descendants(raylet))
