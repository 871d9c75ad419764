from pathlib import Path

import pytest

from jobs.cli import parse_run
from maskrcnn_core.train_config import TrainRun

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "jobs" / "configs").glob("*.yaml"))


def parse(path: Path) -> TrainRun:
    return parse_run(TrainRun, prog="train", argv=["--config", str(path), "--output", "runs/one"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_parses_and_differs_from_the_defaults(path: Path) -> None:
    run = parse(path)
    assert run.output == "runs/one"
    assert (run.model, run.train) != (TrainRun("").model, TrainRun("").train)
    assert not run.data.train.images, "data sets are the user's"


def test_the_configurations_are_there() -> None:
    assert {path.stem for path in CONFIGS} >= {"mask_rcnn_r50_fpn", "mask_rcnn_lite0_fpn", "nuclei"}


def test_nuclei_has_small_anchors_and_a_short_schedule() -> None:
    run = parse(next(path for path in CONFIGS if path.stem == "nuclei"))
    assert run.model.anchors.sizes == (8, 16, 32, 64, 128)
    assert run.model.backbone.name == "efficientnet_lite0"
    assert run.train.warmup_steps < run.train.steps
