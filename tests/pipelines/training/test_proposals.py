"""RPN alone, training on proposals from files, and starting from other checkpoints: what alternating training (Faster
R-CNN, section 3.2) is made of, on small pictures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import CheckpointError, ConfigError, StorageError
from maskrcnn_core.records.proposals import proposals_to_table
from maskrcnn_core.weights.checkpoint import load_checkpoint, save_checkpoint
from pipelines.cluster import connection
from pipelines.cluster.config import ClusterConfig
from pipelines.evaluation.config import EvaluateRun
from pipelines.evaluation.proposals import evaluate_proposals
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.run import label
from pipelines.training.config import TrainRun
from pipelines.training.data_checks import check_data
from pipelines.training.data_config import DataConfig, DatasetConfig
from pipelines.training.events import InitialWeightsLoaded, StepReport, TrainingEvent, ValidationReport
from pipelines.training.output import initial_checkpoints
from pipelines.training.run import train
from tests.pipelines.training.test_run import SMALL, small_run, write_data

# Ray Train makes Ray Data's default context, which warns of settings that it gives itself; DDP and Ray do likewise.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

RPN_ALONE = replace(
    SMALL, box_head=replace(SMALL.box_head, enabled=False), mask_head=replace(SMALL.mask_head, enabled=False)
)
NO_RPN = replace(SMALL, dense=replace(SMALL.dense, enabled=False))


def frozen(model: ModelConfig) -> ModelConfig:
    return replace(model, backbone=replace(model.backbone, frozen_stages=5))


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with connection.connect(ClusterConfig(num_cpus=4)):
        yield


def run_of(output: Path, data: Path, model: ModelConfig, proposals: Path | None = None, **settings: Any) -> TrainRun:
    """A run of three steps on the data set in `data`, validated on itself."""
    if not data.exists():
        write_data(data)
    source = DatasetConfig(images=str(data / "images"), annotations=str(data / "instances.json"))
    run = small_run(output, source, steps=3, checkpoint_every=3, validate_every=3)
    named = replace(run.data.train, proposals="" if proposals is None else str(proposals))
    return replace(run, model=model, data=DataConfig(train=named, val=named), **settings)


def of_kind(events: list[TrainingEvent], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


def trunk_of(checkpoint: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load_checkpoint(checkpoint)[1].items() if name.startswith("trunk.")}


@pytest.mark.ray
def test_the_parts_of_alternating_training(ray_here: None, tmp_path: Path) -> None:
    data = tmp_path / "data"

    # 1. An RPN alone, chosen by its average recall.
    events: list[TrainingEvent] = []
    rpn = train(run_of(tmp_path / "rpn", data, RPN_ALONE), events.append)
    assert set(of_kind(events, StepReport)[-1].losses) == {"rpn_objectness", "rpn_box"}
    (validation,) = of_kind(events, ValidationReport)
    assert set(validation.metrics) >= {"proposals/AR@100", "proposals/AR@1000"}
    assert validation.score == validation.metrics["proposals/AR@1000"]
    assert (validation.images, validation.failed_images) == (7, 0)

    # Its proposals.
    annotations = str(data / "instances.json")
    images: dict[str, Any] = {"images": annotations, "image_root": str(data / "images")}
    proposing = LabelRun(
        rpn.checkpoint, output=str(tmp_path / "proposals"), label=LabelConfig(record="proposals"), **images
    )
    made = label(proposing)
    assert (made.images, made.failed) == (7, 0)
    assert made.detections > 0
    scored = evaluate_proposals(EvaluateRun(proposing.output, annotations))
    assert scored.stats[2] == validation.score  # the same path as in training

    # 2. A detector that learns from them and has no RPN.
    events = []
    detector = train(run_of(tmp_path / "detector", data, NO_RPN, tmp_path / "proposals"), events.append)
    assert set(of_kind(events, StepReport)[-1].losses) == {"roi_class", "roi_box", "roi_mask"}
    assert "segm/AP" in of_kind(events, ValidationReport)[0].metrics
    assert not any(name.startswith("dense.") for name in load_checkpoint(detector.last)[1])

    # 3 and 4 in one: a model of both that starts from the RPN and the detector and leaves the trunk as it is.
    events = []
    run = run_of(tmp_path / "both", data, frozen(SMALL), init=f"{detector.last},{rpn.last}")
    both = train(run, events.append)
    (loaded,) = of_kind(events, InitialWeightsLoaded)
    assert (loaded.sources, loaded.fresh) == ((detector.last, rpn.last), ())
    expected = trunk_of(detector.last)
    assert all(torch.equal(value, expected[name]) for name, value in trunk_of(both.last).items())
    events = []
    assert train(run, events.append).resumed_from == 3
    assert events == []


def test_regions_come_from_an_rpn_or_from_files(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with pytest.raises(ConfigError, match=r"data\.train\.proposals: not given, but model\.dense\.enabled is false"):
        check_data(run_of(tmp_path / "run", data, NO_RPN))
    with pytest.raises(ConfigError, match=r"data\.train\.proposals: given, but the model has an RPN"):
        check_data(run_of(tmp_path / "run", data, SMALL, tmp_path))
    run = run_of(tmp_path / "run", data, NO_RPN, tmp_path)
    without = replace(run, data=replace(run.data, val=replace(run.data.val, proposals="")))
    with pytest.raises(ConfigError, match=r"data\.val\.proposals: not given"):
        check_data(without)


def test_images_without_proposals_are_found_before_anything_starts(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "proposals"
    folder.mkdir()
    pq.write_table(proposals_to_table([], [], [], "model"), folder / "none.parquet")
    with pytest.raises(StorageError, match=r"data\.train\.proposals .*: 7 of 7 images have no row, .* image id 1, 2"):
        train(run_of(tmp_path / "run", data, NO_RPN, folder))
    with pytest.raises(StorageError, match=r"data\.train\.proposals: .*nowhere: no such file or folder"):
        train(run_of(tmp_path / "run", data, NO_RPN, tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_a_start_that_cannot_be_is_found_before_anything_starts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        train(run_of(tmp_path / "run", data, SMALL, init=str(tmp_path / "nowhere")))
    for number, model in enumerate(
        (replace(SMALL, backbone=BackboneConfig("resnet18")), replace(SMALL, input=InputConfig(channels="bgr")))
    ):
        folder = tmp_path / f"other{number}"
        save_checkpoint(folder, {"trunk.weight": torch.zeros(1)}, model)
        with pytest.raises(ConfigError, match=rf"init: {folder} has model\.(backbone\.name|input\.channels)"):
            train(run_of(tmp_path / "run", data, SMALL, init=str(folder)))
    assert not (tmp_path / "run").exists()


def test_one_or_several_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "with,comma").mkdir()
    assert initial_checkpoints(f"{tmp_path}/with,comma") == (f"{tmp_path}/with,comma",)
    assert initial_checkpoints("one") == ("one",)
    assert initial_checkpoints("one, two") == ("one", "two")
