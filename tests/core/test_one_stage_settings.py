"""Settings of one-stage detectors: what goes together, and what says so where it does not."""

from dataclasses import replace
from typing import Any

import pytest

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.dense_detection import DenseDetectionConfig
from maskrcnn_core.config.dense_head import BoxCodingConfig, DenseHeadConfig
from maskrcnn_core.config.dense_loss import DenseLossConfig
from maskrcnn_core.config.heads import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.inference.settings import PredictorSettings, check_settings, with_overrides

OFF: dict[str, Any] = {"box_head": BoxHeadConfig(enabled=False), "mask_head": MaskHeadConfig(enabled=False)}
DENSE = DenseConfig(finds="detections", loss=DenseLossConfig("focal"))
ONE_STAGE = ModelConfig(dense=DENSE, **OFF)


def test_what_finds_detections_says_how_many() -> None:
    assert ONE_STAGE.finds == "detections"
    assert ONE_STAGE.detection is ONE_STAGE.dense.detection
    changed = ONE_STAGE.with_detection(min_score=0.3, max_detections=7)
    assert changed.dense.detection == DenseDetectionConfig(min_score=0.3, max_detections=7)
    assert changed.box_head == ONE_STAGE.box_head
    assert ONE_STAGE.with_detection() == ONE_STAGE
    two = ModelConfig()
    assert (two.finds, two.detection) == ("detections", two.box_head)
    assert two.with_detection(max_detections=7).box_head.max_detections == 7
    assert ModelConfig(**OFF).finds == "proposals"


def test_a_predictors_settings_replace_them() -> None:
    changed = with_overrides(ONE_STAGE, PredictorSettings(min_score=0.3, max_detections=7))
    assert changed.dense.detection == DenseDetectionConfig(min_score=0.3, max_detections=7)
    proposing = with_overrides(ONE_STAGE, PredictorSettings(record="proposals", max_detections=7))
    assert proposing.dense.post_nms_test == 7
    for record in ("detections", "proposals"):
        check_settings(ONE_STAGE, PredictorSettings(record=record))
    with pytest.raises(ConfigError, match="proposals: are given, but the checkpoint is a one-stage detector"):
        check_settings(ONE_STAGE, PredictorSettings(proposals="abc"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"box_head": BoxHeadConfig()},
            r"model\.box_head\.enabled: got True, expected false where model\.dense\.finds",
        ),
        (
            {"dense": DenseConfig(), "mask_head": MaskHeadConfig()},
            r"model\.mask_head\.enabled: got True, expected false where model\.box_head\.enabled is false and",
        ),
        (
            {"dense": DenseConfig(), "keypoint_head": KeypointHeadConfig(enabled=True)},
            r"model\.keypoint_head\.enabled: got True, expected false",
        ),
        (
            {"mask_head": MaskHeadConfig(regions="proposals")},
            r"model\.mask_head\.regions: got 'proposals', expected refined",
        ),
        ({"dense": replace(DENSE, enabled=False)}, r"model\.dense\.enabled: got False, expected true"),
        (
            {"dense": replace(DENSE, anchors=AnchorConfig(kind="octaves", sizes=(8.0,)))},
            r"model\.dense\.anchors\.sizes: got \(8\.0,\), expected 5 sizes",
        ),
    ],
)
def test_stages_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(ONE_STAGE, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"loss": DenseLossConfig()},
            r"dense\.loss\.kind: got 'sampled', expected focal, points, ",
        ),
        ({"loss": DenseLossConfig("points")}, r"model\.dense\.coding\.kind: got 'deltas', expected edges"),
        ({"detection": DenseDetectionConfig("centreness")}, r"score_from: got 'centreness', expected sigmoid"),
        ({"detection": DenseDetectionConfig("softmax")}, r"score_from: got 'softmax', expected sigmoid"),
        (
            {"head": DenseHeadConfig("towers", objectness=True)},
            r"model\.dense\.head\.objectness: got True, expected false where model\.dense\.loss\.kind is focal",
        ),
    ],
)
def test_parts_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(DENSE, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseHeadConfig(norm="group"), r"model\.dense\.head\.norm: got 'group', expected none where"),
        (lambda: DenseHeadConfig(objectness=True), r"model\.dense\.head\.objectness: got True, expected false where"),
        (lambda: DenseHeadConfig(prior=0.0), r"model\.dense\.head\.prior: got 0\.0, expected a number between"),
        (lambda: BoxCodingConfig(weights=(0.0, 1.0, 1.0, 1.0)), r"model\.dense\.coding\.weights: got"),
        (lambda: AnchorConfig(kind="octaves", every_level=True), r"model\.dense\.anchors\.every_level: got True"),
        (lambda: AnchorConfig((0.5,), kind="octaves", whole_sizes=True), r"model\.dense\.anchors\.whole_sizes: got"),
        (lambda: DenseLossConfig(gamma=-1.0), r"model\.dense\.loss\.gamma: got -1\.0"),
    ],
)
def test_settings_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
