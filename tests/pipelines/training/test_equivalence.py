"""The same run on other numbers of workers, and cut off in the middle: same images, same losses, same weights."""

import os
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

from maskrcnn_core.weights.checkpoint import load_checkpoint
from pipelines.cluster import connection
from pipelines.cluster.config import ClusterConfig
from pipelines.training.checkpoint_store import list_checkpoints
from pipelines.training.config import TrainConfig, TrainRun
from pipelines.training.data_config import DataConfig, DatasetConfig
from pipelines.training.events import CheckpointPassedOver, StepReport, TrainingEvent, TrainingStarted
from pipelines.training.output import resume_uri
from pipelines.training.run import train
from pipelines.training.sample_log import read_samples
from tests.pipelines.training.test_run import assert_equal_weights, small_run, write_data
from tests.processes import descendants

# Ray Train makes Ray Data's default context, which warns of settings that it gives itself; DDP and Ray do likewise.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with connection.connect(ClusterConfig(num_cpus=4)):
        yield


def unvalidated(folder: Path, source: DatasetConfig, **settings: Any) -> TrainRun:
    run = small_run(folder, source, **settings)
    return replace(run, data=DataConfig(train=source, check_images=0))


def losses_of(events: list[TrainingEvent]) -> dict[int, dict[str, float]]:
    return {event.step: event.losses for event in events if isinstance(event, StepReport)}


def assert_close_losses(one: dict[int, dict[str, float]], other: dict[int, dict[str, float]], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for step, losses in one.items():
        assert losses == pytest.approx(other[step], abs=tolerance), f"step {step}"


@pytest.mark.ray
def test_the_number_of_workers_changes_nothing(ray_here: None, tmp_path: Path) -> None:
    """20 steps at the rates of the default optimisation's first ones: warm-up of 1000 steps, linear rule.

    Sums in another order differ in their last bits, and learning makes more of such a difference with every step, the
    faster the higher the rate. The first 20 steps of a recipe lie in its warm-up, and so do these.
    """
    source = write_data(tmp_path / "data")
    recipe, warmup_steps = TrainConfig(), 19
    begin = recipe.warmup_factor
    end = begin + (1 - begin) * warmup_steps / recipe.warmup_steps
    settings = {
        "batch_size": 4,
        "learning_rate": recipe.learning_rate * end,
        "reference_batch_size": recipe.batch_size,
        "warmup_steps": warmup_steps,
        "warmup_factor": begin / end,
        "log_every": 1,
        "checkpoint_every": 20,
    }
    found = []
    for workers in (1, 2, 3):  # 3 workers have 1, 1 and 2 of the 4 images
        run = unvalidated(tmp_path / f"by{workers}", source, num_workers=workers, steps=20, **settings)
        events: list[TrainingEvent] = []
        train(run, events.append)
        found.append((losses_of(events), read_samples(run.output)))
    (alone, samples), *shared = found
    assert len(alone) == len(samples) == 20
    for losses, images in shared:
        assert images == samples
        assert_close_losses(losses, alone, 1e-5)


@pytest.mark.ray
@pytest.mark.slow  # two runs
def test_batch_norm_over_workers_is_that_of_one_worker(ray_here: None, tmp_path: Path) -> None:
    source = write_data(tmp_path / "data")  # images of one size: padding takes part in the statistics
    found = []
    for workers in (1, 2):
        # Few steps: C5 has 16 values of a channel here, so that differences of rounding grow fast.
        few = {"steps": 2, "warmup_steps": 1, "learning_rate": 0.001}
        run = unvalidated(tmp_path / f"by{workers}", source, num_workers=workers, batch_size=4, log_every=1, **few)
        backbone = replace(run.model.backbone, norm="sync_batch")
        run = replace(run, model=replace(run.model, backbone=backbone))
        events: list[TrainingEvent] = []
        last = train(run, events.append).last
        found.append((losses_of(events), load_checkpoint(last)[1]))
    (alone, one), (shared, other) = found
    assert_close_losses(shared, alone, 1e-3)
    means = [name for name in one if name.endswith("running_mean")]
    assert means
    assert all(bool(one[name].any()) for name in means)
    for name in (means[0], means[0].replace("mean", "var")):  # of the stem, before differences have grown
        torch.testing.assert_close(other[name], one[name], rtol=1e-2, atol=1e-3, msg=name)


_STRAIGHT = """
import sys
from pathlib import Path
from pipelines.cluster.config import ClusterConfig
from pipelines.training.data_config import DatasetConfig
from pipelines.cluster import connection
from pipelines.training.run import train
from tests.pipelines.training.test_equivalence import unvalidated

output, images, annotations, steps, workers = sys.argv[1:]
source = DatasetConfig(images=images, annotations=annotations)
run = unvalidated(Path(output), source, steps=int(steps), batch_size=2, num_workers=int(workers), checkpoint_every=10)
with connection.connect(ClusterConfig(num_cpus=4)):
    train(run)
"""


def kill_group_at(step: int, output: Path, command: list[str]) -> None:
    """Run a command in a process group of its own, and SIGKILL all of its processes once a checkpoint is there."""
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 500.0
    while not any(stored.step >= step for stored in list_checkpoints(resume_uri(str(output)))):
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    victims = [process.pid, *descendants(process.pid)]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_sixty_steps_are_thirty_and_sigkill_of_everything_and_thirty(
    ray_here: None, tmp_path: Path, workers: int
) -> None:
    source = write_data(tmp_path / "data")
    settings = {"batch_size": 2, "num_workers": workers, "steps": 60, "log_every": 1, "checkpoint_every": 10}
    straight_events: list[TrainingEvent] = []
    straight = train(unvalidated(tmp_path / "straight", source, **settings), straight_events.append)

    cut = unvalidated(tmp_path / "cut", source, **settings)
    command = [sys.executable, "-c", _STRAIGHT, cut.output, source.images, source.annotations, "60", str(workers)]
    kill_group_at(30, Path(cut.output), command)
    newest = list_checkpoints(resume_uri(cut.output))[0].step
    events: list[TrainingEvent] = []
    summary = train(cut, events.append)

    assert [event.step for event in events if isinstance(event, TrainingStarted)] == [newest]
    assert (summary.steps, summary.resumed_from) == (60, newest)
    assert read_samples(cut.output) == read_samples(straight.last.rsplit("/", 2)[0])
    expected = {step: losses for step, losses in losses_of(straight_events).items() if step > newest}
    assert_close_losses(losses_of(events), expected, 1e-6)
    if workers == 1:
        assert_equal_weights(summary.last, straight.last)


@pytest.mark.ray
def test_a_torn_checkpoint_is_passed_over(ray_here: None, tmp_path: Path) -> None:
    source = write_data(tmp_path / "data")
    run = unvalidated(tmp_path / "run", source, steps=6, checkpoint_every=2)
    straight = train(run)
    again = replace(run, output=str(tmp_path / "again"))
    kept = Path(run.output)
    kept.rename(again.output)
    Path(again.output, "summary.json").unlink()
    (newest, before) = list_checkpoints(resume_uri(again.output))
    assert (newest.step, before.step) == (6, 4)
    expected = load_checkpoint(Path(again.output, "checkpoints", "last"))[1]
    torn = Path(newest.uri, "training", "state.pt")
    torn.write_bytes(torn.read_bytes()[:-100])
    events: list[TrainingEvent] = []
    summary = train(again, events.append)
    assert summary.resumed_from == 4
    (passed,) = [event for event in events if isinstance(event, CheckpointPassedOver)]
    assert "step-00000006/training/state.pt: has" in passed.reason
    assert straight.steps == summary.steps
    found = load_checkpoint(summary.last)[1]
    assert all(torch.equal(found[name], value) for name, value in expected.items())
