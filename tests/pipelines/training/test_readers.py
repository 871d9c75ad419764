"""Actors that read for a training worker: the same batches in the same order as its own loader, and the same run."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from maskrcnn_core.data.dataset import Sample
from maskrcnn_core.errors import ConfigError, ImageError
from maskrcnn_core.training.loader import load_batches
from maskrcnn_core.training.sampler import BatchPlan
from pipelines.cluster import connection
from pipelines.cluster.config import ClusterConfig
from pipelines.training.config import TrainRun
from pipelines.training.data_config import DataConfig
from pipelines.training.events import TrainingEvent, TrainingStarted
from pipelines.training.readers import remote_batches
from pipelines.training.run import train
from pipelines.training.sample_log import read_samples
from tests.pipelines.training.test_equivalence import losses_of
from tests.pipelines.training.test_run import assert_equal_weights, image_of_step, small_run, write_data

# Ray Train makes Ray Data's default context, which warns of settings that it gives itself; DDP and Ray do likewise.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.ray]

PLAN = BatchPlan([(8, 8)] * 11, batch_size=4, world_size=2, seed=3, short_sides=(4, 5, 6))


class Echo:
    """A source whose items are the samples themselves; one image may be broken."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __getitem__(self, sample: Sample) -> Sample:
        if sample.index == self.broken:
            raise ImageError("missing", f"image {sample.index}: no such file")
        return sample


def together(samples: Sequence[Sample]) -> list[Sample]:
    return list(samples)


def collect(batches: Iterator[list[Sample]], found: list[list[Sample]]) -> None:
    for batch in batches:
        found.append(batch)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with connection.connect(ClusterConfig(num_cpus=4)):
        yield


@pytest.mark.parametrize("rank", [0, 1])
def test_actors_give_the_batches_of_the_loader_in_order(ray_here: None, rank: int) -> None:
    for start in (0, 5):  # from the beginning, and as a resumed run
        expected = list(load_batches(Echo(), together, PLAN, rank=rank, start=start, stop=20))
        with remote_batches(Echo(), together, PLAN, rank=rank, start=start, stop=20, readers=2) as batches:
            assert list(batches) == expected
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_a_faulty_image_is_told_at_its_place(ray_here: None) -> None:
    shown = [[sample.index for sample in PLAN.batch(step)] for step in range(6)]
    broken = next(index for index in shown[4] if not any(index in images for images in shown[:4]))
    found: list[list[Sample]] = []
    with (
        pytest.raises(ImageError, match=f"image {broken}: no such file") as told,
        remote_batches(Echo(broken), together, PLAN, rank=0, start=0, stop=6, readers=2) as batches,
    ):
        collect(batches, found)
    assert told.value.status == "missing"
    assert found == [PLAN.batch(step) for step in range(4)]


def test_no_free_cpu_is_said_and_not_waited_for(ray_here: None) -> None:
    holder = ray.remote(num_cpus=4)(Echo).remote()
    ray.get(holder.__ray_ready__.remote())
    try:
        with (
            pytest.raises(ConfigError, match=r"data.workers: none of 2 readers .* has started within 0.5 s"),
            remote_batches(Echo(), together, PLAN, rank=0, start=0, stop=2, readers=2, start_seconds=0.5),
        ):
            pass
    finally:
        ray.kill(holder)


def run_with(output: Path, data: DataConfig) -> TrainRun:
    return replace(small_run(output, data.train, log_every=1), data=data)


@pytest.mark.slow  # four runs of a few steps
def test_a_run_is_the_same_with_both_readers(ray_here: None, tmp_path: Path) -> None:
    source = write_data(tmp_path / "data")
    local = DataConfig(train=source, check_images=0, max_bad_fraction=0.0)
    remote = replace(local, reader="ray", workers=2)
    expected: list[TrainingEvent] = []
    straight = train(run_with(tmp_path / "local", local), expected.append)
    found: list[TrainingEvent] = []
    summary = train(run_with(tmp_path / "remote", remote), found.append)
    assert losses_of(found) == losses_of(expected)  # bit by bit
    assert read_samples(str(tmp_path / "remote")) == read_samples(str(tmp_path / "local"))
    assert_equal_weights(summary.last, straight.last)

    # Cut off in the middle by an image that cannot be read, and resumed.
    missing = Path(source.images, f"{image_of_step(4)}.png")
    missing.rename(missing.with_suffix(".away"))
    cut = run_with(tmp_path / "cut", remote)
    with pytest.raises(ImageError, match=r"image \d+ .*no such file"):
        train(cut)
    missing.with_suffix(".away").rename(missing)
    events: list[TrainingEvent] = []
    resumed = train(cut, events.append)
    assert [event.step for event in events if isinstance(event, TrainingStarted)] == [3]
    assert losses_of(events) == {step: losses for step, losses in losses_of(expected).items() if step > 3}
    assert_equal_weights(resumed.last, straight.last)


def test_readers_count_among_what_the_cluster_needs(ray_here: None, tmp_path: Path) -> None:
    data = DataConfig(train=write_data(tmp_path / "data"), check_images=0, reader="ray", workers=4)
    with pytest.raises(
        ConfigError,
        match=r"num_workers: 1 workers with 4 readers each \(data.workers\) need 5 CPUs, the Ray cluster has 4; "
        r".*lower data.workers or set data.reader to local",
    ):
        train(run_with(tmp_path / "run", data))
    with pytest.raises(
        ConfigError, match=r"data.workers: got 'auto', expected the number of actors .* with data.reader ray"
    ):
        DataConfig(reader="ray")
