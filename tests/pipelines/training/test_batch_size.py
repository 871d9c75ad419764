"""The largest batch that fits, without a GPU: memory is counted as what the backward pass keeps."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.training.state import TrainingState
from pipelines.cluster import connection, waiting
from pipelines.cluster.capacity import Capacity
from pipelines.training import batch_size
from pipelines.training import run as training
from pipelines.training.batch_size import (
    LargestImage,
    find_batch_size,
    images_that_fit,
    largest_image,
    largest_that_fits,
    most_images,
)
from pipelines.training.config import TrainConfig, TrainRun
from pipelines.training.data_config import AugmentConfig
from pipelines.training.datasets import training_data
from pipelines.training.events import ClusterNote, DataNote, SchedulePlanned, TrainingEvent
from pipelines.training.output import claim, with_batch_size_of_run
from pipelines.training.run import train
from pipelines.training.worker import WorkerResult
from tests.pipelines.training.test_run import small_run, write_data


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 9, 100])
def test_the_largest_that_fits_is_found_without_going_far_beyond(most: int) -> None:
    for right in range(most + 1):
        tried: list[int] = []

        def fits(number: int, tried: list[int] = tried, right: int = right) -> bool:
            tried.append(number)
            return number <= right

        assert largest_that_fits(fits, most) == right
        assert len(tried) == len(set(tried))
        assert all(1 <= number <= min(most, max(1, 2 * right)) for number in tried)


class CountedMemory:
    """Counts the bytes that steps keep for their backward pass, and has no more than `limit` of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.peaks: list[int] = []

    def peak_of(self, work: Callable[[], object]) -> int:
        self.peaks.append(0)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            self.peaks[-1] += tensor.nbytes
            if self.peaks[-1] > 2 * self.limit:
                raise torch.OutOfMemoryError("all memory is in use")
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            work()
        return self.peaks[-1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainRun:
    folder = tmp_path_factory.mktemp("batch")
    run = small_run(folder / "run", write_data(folder / "data"), batch_size="auto", reference_batch_size=2)
    return replace(run, model=replace(run.model, categories=training_data(run).dataset.categories))


def test_images_are_tried_until_memory_is_used_up(run: TrainRun) -> None:
    largest, device = LargestImage(64, 64, 3), torch.device("cpu")
    one, four = (CountedMemory(1 << 60) for _ in range(2))
    assert images_that_fit(run, largest, one, device, 1) == 1
    assert images_that_fit(run, largest, four, device, 4) == 4
    bytes_of_one, bytes_of_four = one.peaks[-1], four.peaks[-1]
    assert bytes_of_four > 1.5 * bytes_of_one  # which holds the weights too
    memory = CountedMemory(bytes_of_four - 1)
    assert images_that_fit(run, largest, memory, device, 16) == 3
    assert images_that_fit(run, largest, CountedMemory(bytes_of_four), device, 4) == 4
    assert images_that_fit(run, largest, CountedMemory(bytes_of_one // 3), device, 4) == 0


def test_many_objects_and_large_images_need_more(run: TrainRun) -> None:
    def peak(largest: LargestImage) -> int:
        memory = CountedMemory(1 << 60)
        assert images_that_fit(run, largest, memory, torch.device("cpu"), 1) == 1
        return memory.peaks[-1]

    assert peak(LargestImage(128, 128, 3)) > peak(LargestImage(64, 64, 3))
    peak(LargestImage(64, 96, 0))  # nothing to learn


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, LargestImage(64, 64, 1)),
        ({"short_sides": (32, 48)}, LargestImage(48, 48, 1)),
        ({"augment": AugmentConfig(jitter_scale=(0.1, 2.0), crop=(96, 80))}, LargestImage(96, 80, 1)),
        ({"augment": AugmentConfig(jitter_scale=(0.1, 2.0), crop=(96, 80), copy_paste=0.5)}, LargestImage(96, 80, 2)),
    ],
)
def test_the_largest_image_of_a_run(run: TrainRun, settings: dict[str, Any], expected: LargestImage) -> None:
    changed = replace(run, train=replace(run.train, **settings))
    assert largest_image(changed, training_data(run).dataset) == expected


def test_a_batch_is_as_high_and_as_wide_as_any_of_its_orientation(run: TrainRun) -> None:
    dataset = training_data(run).dataset
    sizes = [(40, 64), (64, 30), (64, 64)]  # height, width; the wide ones are together 64 x 102
    model = replace(run.model, input=replace(run.model.input, short_side=64, long_side=110))
    for order in (sizes, sizes[::-1]):
        dataset.columns.__dict__["sizes"] = np.array(order, np.int32)
        found = largest_image(replace(run, model=model), dataset)
        assert (found.height, found.width) == (64, 102)


def test_bounds_of_what_is_worth_trying() -> None:
    settings = TrainConfig(batch_size="auto", reference_batch_size=8)
    assert most_images(settings, 1e6) == 64
    assert most_images(settings, 320) == 20
    assert most_images(settings, 5) == 1
    assert most_images(replace(settings, num_workers=4), 5) == 4


def test_on_a_cpu_it_is_the_reference_and_said(run: TrainRun) -> None:
    number, note = find_batch_size(replace(run, train=replace(run.train, use_gpu=False)), 1000.0)
    assert number == 2
    assert note == "train.batch_size auto: 2, as there is no GPU to try it on (train.reference_batch_size)"


@pytest.mark.parametrize(
    ("fitting", "workers", "least", "number"),
    [(5, 1, 0, 5), (5, 3, 0, 15), (5, 3, 2, 10), (40, 2, 0, 16), (1, 4, 1, 4)],
)
def test_all_workers_or_those_that_are_left_share_the_batch(
    run: TrainRun, monkeypatch: pytest.MonkeyPatch, fitting: int, workers: int, least: int, number: int
) -> None:
    asked: list[int] = []

    class Remote:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __call__(self, _: object) -> "Remote":
            return self

        def remote(self, _: TrainRun, most: int) -> tuple[int, LargestImage, float]:
            asked.append(most)
            return min(fitting, most), LargestImage(64, 64, 1), 80.0

    monkeypatch.setattr(ray, "remote", Remote)
    monkeypatch.setattr(ray, "get", lambda value: value)
    many = replace(run, train=replace(run.train, use_gpu=True, num_workers=workers, min_workers=least))
    found, note = find_batch_size(many, 1000.0)
    assert found == number
    assert f"auto: {number}; " in note
    assert "64 x 64 pixels with up to 1 objects fit into 80 GiB" in note


def test_a_gpu_that_is_too_small_is_one_line(run: TrainRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "_try_on_gpu", lambda *_: None)

    class Remote:
        @staticmethod
        def remote(*_: object) -> tuple[int, LargestImage, float]:
            return 0, LargestImage(4000, 4000, 900), 8.0

    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: Remote)
    monkeypatch.setattr(ray, "get", lambda value: value)
    with pytest.raises(ConfigError, match=r"not even one image of 4000 x 4000 .* 8 GiB of a GPU; expected a smaller"):
        find_batch_size(replace(run, train=replace(run.train, use_gpu=True)), 1000.0)


def test_a_run_that_goes_on_has_the_batch_that_was_found(run: TrainRun, tmp_path: Path) -> None:
    begun = replace(run, output=str(tmp_path / "run"), train=replace(run.train, batch_size=6))
    claim(begun)
    assert with_batch_size_of_run(replace(begun, train=run.train)).batch_size == 6
    assert with_batch_size_of_run(begun) == begun.train


def test_a_start_finds_it_once_and_works_out_the_schedule(
    run: TrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[TrainRun] = []

    def fit(run: TrainRun, *_: Any) -> WorkerResult:
        begun.append(run)
        return WorkerResult(TrainingState(step=run.train.steps), resumed_from=0)

    monkeypatch.setattr(connection, "connect", lambda *_, **__: nullcontext())
    for module in (training, waiting):
        monkeypatch.setattr(module, "read_capacity", lambda: Capacity(({"CPU": 2.0},), is_own=True))
    monkeypatch.setattr(training, "_fit", fit)
    fresh = replace(run, output=str(tmp_path / "run"), train=replace(run.train, epochs=2.0, warmup_share=0.5))
    events: list[TrainingEvent] = []
    train(fresh, events.append)
    assert [type(event) for event in events] == [ClusterNote, DataNote, SchedulePlanned]
    assert (begun[0].train.batch_size, begun[0].train.steps, begun[0].train.warmup_steps) == (2, 7, 4)
    monkeypatch.setattr(training, "find_batch_size", None)  # a run that goes on asks nobody
    train(fresh)
    train(replace(fresh, train=replace(fresh.train, epochs=4.0)))
    assert (begun[1].train.batch_size, begun[1].train.steps) == (2, 14)
    never = replace(fresh, output=str(tmp_path / "other"), train=replace(fresh.train, warmup_share=0.0, warmup_steps=7))
    monkeypatch.setattr(training, "find_batch_size", find_batch_size)
    with pytest.raises(ConfigError, match="7 steps of warm-up are not over at the end of 7 steps"):
        train(never)
    assert not Path(never.output).exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"batch_size": "auto"},
            r"train\.reference_batch_size: got 0, expected the batch that train\.learning_rate is",
        ),
        ({"batch_size": "all", "reference_batch_size": 8}, r"train\.batch_size: got 'all', expected .* or auto"),
        ({"batch_size": 0}, r"train\.batch_size: got 0, expected a number above 0"),
        ({"batch_size": 2, "num_workers": 3}, r"train\.batch_size: got 2, expected at least train\.num_workers"),
    ],
)
def test_batch_sizes_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


def test_proposals_from_files_want_a_number(run: TrainRun) -> None:
    model = replace(run.model, dense=replace(run.model.dense, enabled=False))
    with pytest.raises(ConfigError, match=r"train\.batch_size: got 'auto', expected a number where the proposals come"):
        replace(run, model=model)


def test_nothing_is_built_from_auto() -> None:
    with pytest.raises(AssertionError, match="auto until find_batch_size has replaced it"):
        _ = TrainConfig(batch_size="auto", reference_batch_size=8).images_per_step
