import itertools
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.heads import BoxHeadConfig, MaskHeadConfig
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import AnnotationError, ConfigError, ImageError, StorageError, UserError
from maskrcnn_core.training.sampler import BatchPlan
from maskrcnn_core.weights.checkpoint import load_checkpoint
from pipelines.cluster import connection
from pipelines.cluster.config import ClusterConfig
from pipelines.training import run as training
from pipelines.training.config import TrainConfig, TrainRun
from pipelines.training.data_checks import check_data
from pipelines.training.data_config import DataConfig, DatasetConfig
from pipelines.training.events import (
    CheckpointSaved,
    ClusterNote,
    SchedulePlanned,
    StepReport,
    StoppedEarly,
    TrainingEvent,
    TrainingStarted,
    ValidationReport,
    WorkersLost,
)
from pipelines.training.progress_log import ProgressLog
from pipelines.training.run import train
from pipelines.training.sample_log import read_samples
from pipelines.training.schedule import schedule_remarks
from tests.processes import descendants

# Ray Train makes Ray Data's default context, which warns of settings that it gives itself; DDP and Ray do likewise.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SIDE, IMAGES, STEPS = 64, 7, 6

KILLED = "a process of it was killed or crashed (most often the system does so when memory runs out)"

SMALL = ModelConfig(
    input=InputConfig(short_side=SIDE, long_side=SIDE),
    backbone=BackboneConfig(name="efficientnet_lite0", pretrained=False, frozen_stages=0),
    pyramid=PyramidConfig(channels=8),
    dense=DenseConfig(batch_size=16, pre_nms_train=20, pre_nms_test=20, post_nms_train=10, post_nms_test=10),
    regions=RegionsConfig(batch_size=8),
    box_head=BoxHeadConfig(channels=8),
    mask_head=MaskHeadConfig(channels=4, layers=1),
)


def write_data(folder: Path) -> DatasetConfig:
    """Seven grey pictures with a bright rectangle; the last one has nothing in it."""
    images = folder / "images"
    images.mkdir(parents=True)
    entries, annotations = [], []
    for number in range(IMAGES):
        pixels = np.full((SIDE, SIDE, 3), 90, np.uint8)
        entries.append({"id": number + 1, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        if number < IMAGES - 1:
            x, y, width, height = 4 + 3 * number, 8, 24, 32
            pixels[y : y + height, x : x + width] = 220
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                {
                    "id": number + 1,
                    "image_id": number + 1,
                    "category_id": 7,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [corners],
                }
            )
        Image.fromarray(pixels).save(images / f"{number}.png")
    document = {"images": entries, "annotations": annotations, "categories": [{"id": 7, "name": "door"}]}
    path = folder / "instances.json"
    path.write_text(json.dumps(document))
    return DatasetConfig(images=str(images), annotations=str(path))


def small_run(output: Path, source: DatasetConfig, **settings: Any) -> TrainRun:
    defaults: dict[str, Any] = {
        "steps": STEPS,
        "batch_size": 1,
        "learning_rate": 0.002,
        "warmup_steps": 2,
        "checkpoint_every": 3,
        "validate_every": 3,
        "log_every": 2,
        "threads_per_worker": 1,
    }
    return TrainRun(
        output=str(output),
        model=SMALL,
        data=DataConfig(train=source, val=source, check_images=0),
        train=TrainConfig(**{**defaults, **settings}),
    )


def image_of_step(step: int) -> int:
    """The image that a run of `small_run` meets at a step; none of the earlier steps shows it."""
    plan = BatchPlan([(SIDE, SIDE)] * IMAGES, batch_size=1, seed=0, short_sides=(SIDE,))
    shown = [plan.batch(number)[0].index for number in range(step + 1)]
    assert shown.count(shown[-1]) == 1
    return shown[-1]


def weights(path: str) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)[1]


def assert_equal_weights(one: str, other: str) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with connection.connect(ClusterConfig(num_cpus=4)):
        yield


@pytest.fixture(scope="module")
def straight(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainRun, list[TrainingEvent], Any]:
    folder = tmp_path_factory.mktemp("straight")
    run = small_run(folder / "run", write_data(folder / "data"))
    events: list[TrainingEvent] = []
    return run, events, train(run, events.append)


@pytest.mark.ray
def test_a_run_leaves_checkpoints_logs_and_numbers(straight: tuple[TrainRun, list[TrainingEvent], Any]) -> None:
    run, events, summary = straight
    output = Path(run.output)
    assert (summary.steps, summary.images, summary.resumed_from) == (6, 6, 0)
    assert summary.last == str(output / "checkpoints" / "last")
    assert summary.checkpoint == str(output / "checkpoints" / ("best" if summary.best_step else "last"))
    config, _ = load_checkpoint(summary.checkpoint)
    assert [(category.id, category.name) for category in config.categories] == [(7, "door")]
    assert (output / "checkpoints" / "last" / "training" / "state.pt").is_file()
    assert list((output / "tensorboard").glob("events.out.tfevents.*"))
    assert not [path.name for path in (output / "checkpoints").iterdir() if path.name.startswith(".")]
    assert json.loads((output / "run.json").read_text())["train"]["steps"] == STEPS
    remarks = schedule_remarks(run.train)
    assert events[0] == SchedulePlanned(STEPS, 1, IMAGES, remarks)
    assert events[1] == ClusterNote("computing on CPUs: the Ray cluster has no GPU (train.use_gpu auto)")
    assert events[2] == TrainingStarted(0, STEPS, IMAGES, IMAGES, 1, 1, 0)
    assert json.loads((output / "run.json").read_text())["train"]["use_gpu"] == "auto"
    assert summary.curves == str(output / "curves.svg")
    assert "step 6 of 6" in Path(summary.curves).read_text()
    reports = [event for event in events if isinstance(event, StepReport)]
    assert [report.step for report in reports] == [2, 4, 6]
    assert set(reports[0].losses) == {"rpn_objectness", "rpn_box", "roi_class", "roi_box", "roi_mask"}
    validations = [event for event in events if isinstance(event, ValidationReport)]
    assert [(event.step, event.images, event.failed_images) for event in validations] == [(3, 7, 0), (6, 7, 0)]
    assert validations[0].is_best
    assert 0.0 <= validations[0].metrics["segm/AP"] == validations[0].score
    assert set(validations[0].losses) == set(reports[0].losses)
    assert set(validations[0].categories) == {"door"}
    assert all(0.0 <= report.waiting <= 1.0 and report.memory_gib > 0.05 for report in reports)
    saved = [event.step for event in events if isinstance(event, CheckpointSaved) and event.path == summary.last]
    assert saved == [3, 6]


@pytest.mark.ray
def test_the_folder_of_a_run_explains_itself(straight: tuple[TrainRun, list[TrainingEvent], Any]) -> None:
    run, events, _ = straight
    output = Path(run.output)
    data = json.loads((output / "data.json").read_text())
    assert set(data) == {"data.train", "data.val"}
    assert data["data.train"]["objects_per_category"] == {"door": IMAGES - 1}
    scores = json.loads((output / "validation" / "00000006.json").read_text())
    validations = [event for event in events if isinstance(event, ValidationReport)]
    assert scores["metrics"] == validations[1].metrics
    plan = BatchPlan([(SIDE, SIDE)] * IMAGES, batch_size=1, seed=0, short_sides=(SIDE,))
    expected = {step: (plan.batch(step)[0].index + 1,) for step in range(STEPS)}
    assert read_samples(run.output) == expected

    events_of = EventAccumulator(str(output / "tensorboard"), size_guidance={"images": 0})
    events_of.Reload()
    scalars = set(events_of.Tags()["scalars"])
    assert scalars >= {"loss/total", "train/learning_rate", "train/grad_norm", "train/waiting", "validation/segm/AP"}
    assert scalars >= {"validation_AP_of/door", "validation_loss/roi_mask", "validation_loss/total"}
    assert [entry.step for entry in events_of.Images("validation/pictures")] == [3, 6]


@pytest.mark.ray
def test_a_run_stops_where_validation_no_longer_improves(ray_here: None, tmp_path: Path) -> None:
    run = small_run(
        tmp_path / "run",
        write_data(tmp_path / "data"),
        steps=20,
        validate_every=2,
        patience=2,
        learning_rate=1e-12,
    )
    events: list[TrainingEvent] = []
    summary = train(run, events.append)
    assert (summary.steps, summary.best_step) == (6, 2)
    assert [event for event in events if isinstance(event, StoppedEarly)] == [StoppedEarly(6, 2, 2)]
    assert train(run).resumed_from == 6


@pytest.mark.ray
def test_a_run_of_epochs_is_the_run_of_its_steps_and_may_grow(
    straight: tuple[TrainRun, list[TrainingEvent], Any], tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"steps": 90_000, "warmup_steps": 1000, "warmup_share": 1 / 3, "validations": 2}
    run = small_run(tmp_path / "run", write_data(tmp_path / "data"), epochs=6 / IMAGES, **asked)
    summary = train(run)
    assert summary.steps == STEPS
    assert_equal_weights(summary.last, straight[2].last)
    stored = json.loads(Path(run.output, "run.json").read_text())["train"]
    assert (stored["steps"], stored["warmup_steps"], stored["validate_every"]) == (6, 2, 3)
    assert (stored["epochs"], stored["warmup_share"], stored["validations"]) == (6 / IMAGES, 1 / 3, 2)
    longer = replace(run, train=replace(run.train, epochs=8 / IMAGES))
    events: list[TrainingEvent] = []
    grown = train(longer, events.append)
    assert (grown.steps, grown.resumed_from) == (8, STEPS)
    assert [event.step for event in events if isinstance(event, ValidationReport)] == [8]
    assert train(longer).resumed_from == 8


@pytest.mark.ray
def test_validation_beside_training(straight: tuple[TrainRun, list[TrainingEvent], Any], tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", write_data(tmp_path / "data"), validate_in="task", validation_tasks=2)
    events: list[TrainingEvent] = []
    summary = train(run, events.append)
    found, expected = (
        [event for event in part if isinstance(event, ValidationReport)] for part in (events, straight[1])
    )
    assert [event.step for event in found] == [3, 6]
    for one, other in zip(found, expected, strict=True):
        assert one.metrics == pytest.approx(other.metrics, abs=1e-6)
        assert one.losses == pytest.approx(other.losses, abs=1e-5)
    assert (summary.best_score, summary.best_step) == (straight[2].best_score, straight[2].best_step)
    assert_equal_weights(summary.checkpoint, straight[2].checkpoint)
    assert sorted(path.name for path in Path(run.output, "checkpoints").iterdir()) == ["best", "last"]


@pytest.mark.ray
def test_a_finished_run_is_left_alone(straight: tuple[TrainRun, list[TrainingEvent], Any]) -> None:
    run, _, summary = straight
    events: list[TrainingEvent] = []
    assert train(run, events.append) == replace(summary, resumed_from=STEPS)
    assert events == []


@pytest.mark.ray
def test_other_settings_in_the_same_output_are_refused(straight: tuple[TrainRun, list[TrainingEvent], Any]) -> None:
    run, _, summary = straight
    with pytest.raises(ConfigError, match=r"train.learning_rate was 0.002, now 0.5; give the same"):
        train(replace(run, train=replace(run.train, learning_rate=0.5)))
    with pytest.raises(ConfigError, match=r"model.pyramid.channels was 8, now 16"):
        train(replace(run, model=replace(run.model, pyramid=PyramidConfig(channels=16))))
    assert train(replace(run, train=replace(run.train, log_every=1))).steps == summary.steps


@pytest.mark.ray
def test_a_missing_image_ends_the_run_and_the_same_command_resumes(
    straight: tuple[TrainRun, list[TrainingEvent], Any], tmp_path: Path
) -> None:
    run = small_run(tmp_path / "run", write_data(tmp_path / "data"))
    missing = Path(run.data.train.images, f"{image_of_step(4)}.png")
    missing.rename(missing.with_suffix(".away"))
    run = replace(run, data=replace(run.data, val=DatasetConfig(), max_bad_fraction=0.0))
    with pytest.raises(ImageError, match=r"image \d+ .*no such file"):
        train(run)
    missing.with_suffix(".away").rename(missing)
    events: list[TrainingEvent] = []
    summary = train(run, events.append)
    assert summary.resumed_from == 3
    assert summary.checkpoint == summary.last
    assert [event.step for event in events if isinstance(event, TrainingStarted)] == [3]
    assert_equal_weights(summary.last, straight[2].last)


class KillingLog(ProgressLog):
    """Kills the workers when it hears of the first checkpoint. They wait for its answers, so they cannot be ahead by
    more than a step."""

    def add(self, event: TrainingEvent) -> None:
        super().add(event)
        if isinstance(event, CheckpointSaved) and event.path.endswith("last") and event.step == 3:
            raylet = os.getppid()
            for pid in descendants(raylet):
                if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def killed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainRun:
    """A run without validation whose worker is killed after the first checkpoint."""
    killing = ray.remote(KillingLog).options(num_cpus=0)
    monkeypatch.setattr(training, "start_progress_log", killing.remote)
    run = small_run(tmp_path / "run", write_data(tmp_path / "data"))
    return replace(run, data=replace(run.data, val=DatasetConfig()))


@pytest.mark.ray
def test_a_killed_worker_is_replaced_and_changes_nothing(
    straight: tuple[TrainRun, list[TrainingEvent], Any], killed_once: TrainRun
) -> None:
    events: list[TrainingEvent] = []
    summary = train(killed_once, events.append)
    assert [event.step for event in events if isinstance(event, TrainingStarted)] == [0, 3]
    assert [event for event in events if isinstance(event, WorkersLost)] == [WorkersLost(KILLED)]
    assert_equal_weights(summary.last, straight[2].last)


@pytest.mark.ray
def test_a_worker_killed_once_too_often_ends_the_run(ray_here: None, killed_once: TrainRun) -> None:
    once_too_often = replace(killed_once, train=replace(killed_once.train, max_failures=0))
    with pytest.raises(UserError) as caught:
        train(once_too_often)
    assert str(caught.value) == (f"the training workers were lost: {KILLED}; the same command resumes after step 3")


@pytest.mark.ray
def test_checkpoints_by_time_change_nothing(
    straight: tuple[TrainRun, list[TrainingEvent], Any], tmp_path: Path
) -> None:
    run = small_run(tmp_path / "run", write_data(tmp_path / "data"), checkpoint_every=100, checkpoint_minutes=1e-9)
    events: list[TrainingEvent] = []
    summary = train(run, events.append)
    saved = [event.step for event in events if isinstance(event, CheckpointSaved) and event.path == summary.last]
    # Two steps after it was due, and no sooner than all have come to the step after; it is due again once it is stored.
    assert saved[0] >= 2
    assert saved[-1] == STEPS
    assert len(saved) >= 2
    assert all(later > earlier for earlier, later in itertools.pairwise(saved))
    assert_equal_weights(summary.last, straight[2].last)


@pytest.mark.ray
def test_two_workers_agree_on_checkpoints_by_time(ray_here: None, tmp_path: Path) -> None:
    settings = {"batch_size": 2, "num_workers": 2, "steps": 20, "checkpoint_every": 100, "checkpoint_minutes": 1e-9}
    run = small_run(tmp_path / "run", write_data(tmp_path / "data"), **settings)
    events: list[TrainingEvent] = []
    summary = train(replace(run, data=replace(run.data, val=DatasetConfig())), events.append)
    saved = [event.step for event in events if isinstance(event, CheckpointSaved)]
    assert summary.steps == 20
    assert len(saved) > 3
    assert saved == sorted(set(saved))


@pytest.mark.ray
def test_two_workers_share_the_steps(ray_here: None, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", write_data(tmp_path / "data"), batch_size=2, num_workers=2, steps=5)
    events: list[TrainingEvent] = []
    summary = train(run, events.append)
    assert (summary.steps, summary.images) == (5, 10)
    (started,) = [event for event in events if isinstance(event, TrainingStarted)]
    assert started.workers == 2
    assert [event.images for event in events if isinstance(event, ValidationReport)] == [7, 7]


@pytest.mark.ray
def test_more_workers_than_the_cluster_has(ray_here: None, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", write_data(tmp_path / "data"), num_workers=64, batch_size=64)
    with pytest.raises(ConfigError, match=r"64 workers need 64 CPUs, the Ray cluster has 4"):
        train(run)


def test_data_mistakes_are_found_before_anything_starts(tmp_path: Path) -> None:
    source = write_data(tmp_path / "data")
    run = small_run(tmp_path / "run", source)
    with pytest.raises(ConfigError, match=r"data.train.images: not given"):
        check_data(replace(run, data=DataConfig()))
    with pytest.raises(ConfigError, match=r"data.val.annotations: not given"):
        check_data(replace(run, data=DataConfig(train=source, val=DatasetConfig(images=source.images))))
    with pytest.raises(StorageError, match=r"0.png: no such file, but .*instances.json lists it"):
        check_data(replace(run, data=DataConfig(train=replace(source, images=str(tmp_path)))))
    with pytest.raises(StorageError, match=r"nowhere.json"):
        train(replace(run, data=DataConfig(train=replace(source, annotations=str(tmp_path / "nowhere.json")))))
    assert not Path(run.output).exists()


def test_validation_needs_the_same_categories(tmp_path: Path) -> None:
    source = write_data(tmp_path / "data")
    document = json.loads(Path(source.annotations).read_text())
    document["categories"] = [{"id": 7, "name": "window"}]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document))
    run = small_run(tmp_path / "run", source)
    run = replace(run, data=DataConfig(train=source, val=replace(source, annotations=str(other))))
    with pytest.raises(AnnotationError, match=r"name of their own: 'window' \(id 7, which is 'door' there\); expected"):
        check_data(run)


def test_annotations_without_objects(tmp_path: Path) -> None:
    source = write_data(tmp_path / "data")
    document = json.loads(Path(source.annotations).read_text())
    Path(source.annotations).write_text(json.dumps({**document, "annotations": []}))
    with pytest.raises(AnnotationError, match="no usable annotation, expected at least one"):
        check_data(small_run(tmp_path / "run", source))


def test_a_folder_with_foreign_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds checkpoints but no run.json"):
        train(small_run(tmp_path / "run", write_data(tmp_path / "data")))
