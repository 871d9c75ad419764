"""Training on a Ray cluster of several nodes, on this machine, whose processes die at random."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.cluster_utils import Cluster

from maskrcnn_core.weights.checkpoint import load_checkpoint
from pipelines.cluster import connection
from pipelines.cluster.config import ClusterConfig
from pipelines.training.checkpoint_store import list_checkpoints
from pipelines.training.events import CheckpointSaved, TrainingEvent, TrainingStarted
from pipelines.training.output import read_summary, resume_uri
from pipelines.training.run import train
from pipelines.training.sample_log import read_samples
from tests.pipelines.training.test_equivalence import unvalidated
from tests.pipelines.training.test_run import write_data
from tests.processes import descendants

# Ray Train makes Ray Data's default context, which warns of settings that it gives itself; DDP and Ray do likewise.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.ray]

_NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@pytest.fixture
def nodes() -> Iterator[tuple[Cluster, list[Any]]]:
    """A head without CPUs and three nodes with one each."""
    head = {"num_cpus": 0, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    machines = Cluster(initialize_head=True, connect=False, head_node_args=head)
    try:
        yield machines, [machines.add_node(**_NODE) for _ in range(3)]
    finally:
        machines.shutdown()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_fewer_workers_go_on_when_a_machine_is_lost_for_good(nodes: tuple[Cluster, list[Any]], tmp_path: Path) -> None:
    machines, workers = nodes
    source = write_data(tmp_path / "data")
    settings = {"batch_size": 4, "steps": 40, "checkpoint_every": 5, "num_workers": 3, "min_workers": 2}
    run = unvalidated(tmp_path / "run", source, **settings)
    events: list[TrainingEvent] = []

    def lose_a_machine(event: TrainingEvent) -> None:
        events.append(event)
        if isinstance(event, CheckpointSaved) and event.step == 10:
            machines.remove_node(workers[-1], allow_graceful=False)

    with connection.connect(ClusterConfig(address=machines.address)):
        summary = train(run, lose_a_machine)
    started = [(event.workers, event.step) for event in events if isinstance(event, TrainingStarted)]
    assert [count for count, _ in started] == [3, 2]
    assert started[1][1] >= 10
    assert summary.steps == 40
    samples = read_samples(run.output)
    assert sorted(samples) == list(range(40))
    assert {len(images) for images in samples.values()} == {4}


_DRIVER = """
import sys
from pathlib import Path
from pipelines.cluster.config import ClusterConfig
from pipelines.training.data_config import DatasetConfig
from pipelines.cluster import connection
from pipelines.training.run import train
from tests.pipelines.training.test_chaos import chaos_run

output, images, annotations, address = sys.argv[1:]
with connection.connect(ClusterConfig(address=address)):
    train(chaos_run(Path(output), DatasetConfig(images=images, annotations=annotations)), print)
"""


def chaos_run(output: Path, source: Any) -> Any:
    run = unvalidated(output, source, batch_size=4, steps=90, checkpoint_every=3, num_workers=2, max_failures=20)
    return replace(run, train=replace(run.train, log_every=1))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_training_among_dying_processes(nodes: tuple[Cluster, list[Any]], tmp_path: Path) -> None:
    machines, workers = nodes
    source = write_data(tmp_path / "data")
    undisturbed = chaos_run(tmp_path / "undisturbed", source)
    with connection.connect(ClusterConfig(address=machines.address)):
        expected = train(undisturbed)

    run = chaos_run(tmp_path / "run", source)
    arguments = [run.output, source.images, source.annotations, machines.address]
    log = (tmp_path / "driver.log").open("w")

    def start_driver() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", _DRIVER, *arguments], stdout=log, stderr=log)

    dice = random.Random(int(os.environ.get("CHAOS_SEED", "0")))
    rounds = ["worker", "raylet", "driver", *dice.choices(["worker", "raylet", "driver"], k=2)]
    dice.shuffle(rounds)
    driver = start_driver()
    for number, victim in enumerate(rounds, 1):
        _wait_for_step(run.output, 12 * number, driver)
        time.sleep(dice.random())
        assert read_summary(run.output) is None, "the run was over before the last kill"
        if victim == "driver":
            driver.kill()
            driver.wait()
            driver = start_driver()
        elif victim == "raylet":
            lost = workers.pop(dice.randrange(len(workers)))
            machines.remove_node(lost, allow_graceful=False)
            workers.append(machines.add_node(**_NODE))
        else:
            os.kill(dice.choice(_train_workers()), signal.SIGKILL)
    assert driver.wait(timeout=1200) == 0, (tmp_path / "driver.log").read_text()[-5000:]
    log.close()

    summary = read_summary(run.output)
    assert summary is not None
    assert summary["steps"] == expected.steps == 90
    assert read_samples(run.output) == read_samples(undisturbed.output)
    ours, theirs = (load_checkpoint(Path(path))[1] for path in (summary["last"], expected.last))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4)


def _wait_for_step(output: str, step: int, driver: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 600.0
    while not any(stored.step >= step for stored in list_checkpoints(resume_uri(output))):
        assert driver.poll() is None, f"the driver ended with {driver.returncode}"
        assert time.monotonic() < deadline, f"no checkpoint of step {step}"
        time.sleep(0.05)


def _train_workers() -> list[int]:
    """Processes of the training workers on the nodes that this test started."""
    found = []
    for pid in descendants(os.getpid()):
        try:
            if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except FileNotFoundError:
            continue
    return found
