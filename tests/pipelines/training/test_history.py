"""The tutorial's earlier systems through the jobs: R-FCN trains, goes on, labels and proposes; R-CNN and SPP-net learn
from these proposals, out of their file, and label with them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.heads import MaskHeadConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.regions import RegionsConfig
from pipelines.cluster import connection
from pipelines.cluster.config import ClusterConfig
from pipelines.evaluation.config import EvaluateRun
from pipelines.evaluation.run import evaluate
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.run import label
from pipelines.training.data_config import DataConfig
from pipelines.training.run import train
from pipelines.verification.config import VerifyRun
from pipelines.verification.run import verify
from tests.pipelines.training.test_run import SMALL, small_run, write_data

# Ray Train makes Ray Data's default context, which warns of settings that it gives itself; DDP and Ray do likewise.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BOXES = replace(SMALL, mask_head=MaskHeadConfig(enabled=False), box_head=replace(SMALL.box_head, min_score=0.0))
R_FCN = replace(
    BOXES,
    pyramid=PyramidConfig("dc5"),
    dense=replace(SMALL.dense, anchors=AnchorConfig(every_level=True)),
    regions=RegionsConfig(
        transform="position_pool", box_resolution=3, reduced_channels=8, sampling="hardest", batch_size=8
    ),
)
GIVEN = replace(BOXES, dense=replace(SMALL.dense, enabled=False))
LATER = {
    "R-CNN": replace(
        GIVEN,
        pyramid=PyramidConfig("pixels"),
        regions=RegionsConfig(transform="crop", crop_size=32, crop_context=2, batch_size=8),
    ),
    "SPP-net": replace(
        GIVEN,
        backbone=replace(SMALL.backbone, frozen_stages=5),
        pyramid=PyramidConfig("dc5", image_scales=(1.0, 0.5)),
        regions=RegionsConfig(transform="spatial_pyramid", batch_size=8, canonical_size=32.0),
    ),
}


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with connection.connect(ClusterConfig(num_cpus=4)):
        yield


@pytest.mark.ray
def test_the_earlier_systems_go_through_every_job(ray_here: None, tmp_path: Path) -> None:
    source = write_data(tmp_path / "data")
    run = replace(small_run(tmp_path / "r-fcn", source, steps=4), model=R_FCN)
    train(run)
    longer = train(replace(run, train=replace(run.train, steps=6)))
    assert longer.resumed_from == 4
    images: dict[str, Any] = {"images": source.annotations, "image_root": source.images}
    check_labels(LabelRun(longer.last, output=str(tmp_path / "labels"), **images), source.annotations)

    # Its proposals are the others' regions.
    proposing = LabelRun(
        longer.last, output=str(tmp_path / "proposals"), label=LabelConfig(record="proposals"), **images
    )
    assert label(proposing).detections > 0
    given = replace(source, proposals=proposing.output)
    for name, model in LATER.items():
        run = replace(small_run(tmp_path / name, source, steps=4), model=model)
        made = train(replace(run, data=DataConfig(train=given, val=given, check_images=0)))
        labels = LabelRun(made.last, output=str(tmp_path / f"{name}-labels"), **images)
        check_labels(replace(labels, proposals=proposing.output), source.annotations)


def check_labels(run: LabelRun, annotations: str) -> None:
    made = label(run)
    assert (made.images, made.failed) == (7, 0)
    assert made.detections > 0
    assert set(evaluate(EvaluateRun(run.output, annotations)).scores.stats) == {"bbox"}
    assert verify(VerifyRun(run.output)).passed
