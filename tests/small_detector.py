"""The smallest detectors that are whole: trunk, pyramid, proposals, boxes and masks; they build and run in a moment.

`small_config` is the smallest one. `FINDING` is a little wider, with anchors that fit small pictures, and
`finding_detector` makes one whose random weights find something.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from maskrcnn_core.config import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    Category,
    InputConfig,
    MaskHeadConfig,
    ModelConfig,
    PyramidConfig,
    RPNConfig,
)
from maskrcnn_core.data.generated import CATEGORIES
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.region_detector import RegionDetector
from maskrcnn_core.weights.checkpoint import save_checkpoint


def small_config(categories: Sequence[Category] = CATEGORIES) -> ModelConfig:
    """Input of 64 x 96 pixels, at most 5 detections."""
    return replace(_SMALL, categories=tuple(categories))


def save_small_detector(folder: Path, categories: Sequence[Category] = CATEGORIES) -> Path:
    """A checkpoint of it with random weights, always the same; returns its folder."""
    config = small_config(categories)
    torch.manual_seed(0)
    save_checkpoint(folder, build_detector(config, load_pretrained=False).state_dict(), config)
    return folder


_SMALL = ModelConfig(
    input=InputConfig(short_side=64, long_side=96),
    backbone=BackboneConfig(name="efficientnet_lite0", pretrained=False),
    pyramid=PyramidConfig(channels=8),
    rpn=RPNConfig(pre_nms_test=20, post_nms_test=10),
    box_head=BoxHeadConfig(channels=8, max_detections=5),
    mask_head=MaskHeadConfig(channels=4, layers=1),
    categories=CATEGORIES,
)

FINDING = ModelConfig(
    input=InputConfig(short_side=64, long_side=96),
    backbone=BackboneConfig(name="efficientnet_lite0", pretrained=False, frozen_stages=0),
    pyramid=PyramidConfig(channels=16),
    anchors=AnchorConfig(sizes=(16.0, 32.0, 64.0, 96.0, 128.0)),
    rpn=RPNConfig(pre_nms_test=60, post_nms_test=20),
    box_head=BoxHeadConfig(channels=32, max_detections=8),
    mask_head=MaskHeadConfig(channels=16, layers=1),
    categories=(Category(7, "seven"), Category(3, "three")),
)


def finding_detector(config: ModelConfig = FINDING) -> RegionDetector:
    """A detector with random weights, always the same, whose scores and masks differ from place to place."""
    torch.manual_seed(0)
    detector = build_detector(config, load_pretrained=False)
    with torch.no_grad():
        if detector.box_head is not None:
            detector.box_head.classes.weight.mul_(30)
        if detector.rpn_head is not None:
            detector.rpn_head.objectness.weight.mul_(30)
        if detector.mask_head is not None:
            detector.mask_head.predictor.weight.mul_(100)
    return detector
