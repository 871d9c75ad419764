"""A one-stage detector with masks through the jobs: trained, resumed, labelled with, scored and verified; its proposals
too."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.dense_detection import DenseDetectionConfig
from maskrcnn_core.config.dense_head import DenseHeadConfig
from maskrcnn_core.config.dense_loss import DenseLossConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.weights.checkpoint import load_checkpoint
from pipelines.cluster import connection
from pipelines.cluster.config import ClusterConfig
from pipelines.evaluation.config import EvaluateRun
from pipelines.evaluation.proposals import evaluate_proposals
from pipelines.evaluation.run import evaluate
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.run import label
from pipelines.training.config import TrainConfig, TrainRun
from pipelines.training.events import StepReport, TrainingEvent, ValidationReport
from pipelines.training.run import train
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.pipelines.training.test_run import SMALL, small_run, write_data

# Ray Train makes Ray Data's default context, which warns of settings that it gives itself; DDP and Ray do likewise.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MASK_RETINANET = replace(
    SMALL,
    pyramid=PyramidConfig(channels=8, levels=(3, 4, 5), extra="p6p7_on_c5"),
    dense=DenseConfig(
        finds="detections",
        anchors=AnchorConfig(kind="octaves", sizes=(16.0, 24.0, 32.0, 48.0, 64.0)),
        head=DenseHeadConfig(kind="towers", norm="group"),
        loss=DenseLossConfig(kind="focal", divisor="average"),
        detection=DenseDetectionConfig(min_score=0.0, max_detections=6),
        positive_overlap=0.5,
        negative_overlap=0.4,
        box_loss="giou",
        post_nms_train=10,
        post_nms_test=10,
    ),
    box_head=replace(SMALL.box_head, enabled=False),
)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with connection.connect(ClusterConfig(num_cpus=4)):
        yield


@pytest.mark.ray
def test_a_one_stage_detector_goes_through_every_job(ray_here: None, tmp_path: Path) -> None:
    source = write_data(tmp_path / "data")
    run = replace(small_run(tmp_path / "run", source, steps=3), model=MASK_RETINANET)
    events: list[TrainingEvent] = []
    summary = train(run, events.append)
    report = [event for event in events if isinstance(event, StepReport)][-1]
    assert set(report.losses) == {"dense_class", "dense_box", "roi_mask"}
    (validation,) = [event for event in events if isinstance(event, ValidationReport)]
    assert validation.score == validation.metrics["segm/AP"]
    assert set(validation.losses) == set(report.losses)

    # It goes on, and with it the average that its losses are divided by.
    averages = load_checkpoint(summary.last)[1]["dense.loss.averages"]
    assert averages.min() < 100
    longer = train(replace(run, train=replace(run.train, steps=4)))
    assert longer.resumed_from == 3
    assert not torch.equal(load_checkpoint(longer.last)[1]["dense.loss.averages"], averages)

    # Its labels.
    images: dict[str, Any] = {"images": source.annotations, "image_root": source.images}
    labels = LabelRun(longer.last, output=str(tmp_path / "labels"), label=LabelConfig(max_detections=4), **images)
    made = label(labels)
    assert (made.images, made.failed, made.detections) == (7, 0, 28)
    scores = evaluate(EvaluateRun(labels.output, source.annotations)).scores
    assert set(scores.stats) == {"bbox", "segm"}
    assert verify(VerifyRun(labels.output)).passed

    # Its proposals.
    proposing = replace(labels, output=str(tmp_path / "proposals"), label=LabelConfig(record="proposals"))
    assert label(proposing).detections > 0
    assert len(evaluate_proposals(EvaluateRun(proposing.output, source.annotations)).stats) > 1
    with pytest.raises(ConfigError, match="proposals: are given, but the checkpoint is a one-stage detector"):
        label(replace(labels, output=str(tmp_path / "other"), proposals=proposing.output))


def test_an_average_over_steps_does_not_go_with_pieces_of_a_batch() -> None:
    with pytest.raises(ConfigError, match=r"train\.accumulate: got 2, expected 1 with model\.dense\.loss\.divisor"):
        TrainRun("x", model=MASK_RETINANET, train=TrainConfig(accumulate=2))
