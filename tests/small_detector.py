"""The smallest detectors that are whole: trunk, pyramid, proposals, boxes and masks; they build and run in a moment.

`small_config` is the smallest one. `FINDING` is a little wider, with anchors that fit small pictures, and
`finding_detector` makes one whose random weights find something.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.heads import BoxHeadConfig, MaskHeadConfig
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.data.generated.pictures import CATEGORIES
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
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
    dense=DenseConfig(pre_nms_test=20, post_nms_test=10),
    box_head=BoxHeadConfig(channels=8, max_detections=5),
    mask_head=MaskHeadConfig(channels=4, layers=1),
    categories=CATEGORIES,
)

FINDING = ModelConfig(
    input=InputConfig(short_side=64, long_side=96),
    backbone=BackboneConfig(name="efficientnet_lite0", pretrained=False, frozen_stages=0),
    pyramid=PyramidConfig(channels=16),
    dense=DenseConfig(anchors=AnchorConfig(sizes=(16.0, 32.0, 64.0, 96.0, 128.0)), pre_nms_test=60, post_nms_test=20),
    box_head=BoxHeadConfig(channels=32, max_detections=8),
    mask_head=MaskHeadConfig(channels=16, layers=1),
    categories=(Category(7, "seven"), Category(3, "three")),
)


def finding_detector(config: ModelConfig = FINDING, fixed_size_on: Sequence[str] | None = None) -> Detector:
    """A detector with random weights, always the same, whose scores and masks differ from place to place.

    Args:
        fixed_size_on: of the detector; None = as it is built.
    """
    torch.manual_seed(0)
    detector = build_detector(config, load_pretrained=False)
    if fixed_size_on is not None:
        detector = with_fixed_size_on(detector, fixed_size_on)
    factors = {
        "regions.box.head.classes.weight": 30,
        "dense.head.logits.weight": 30,
        "regions.mask.head.predictor.weight": 100,
    }
    with torch.no_grad():
        for name, weight in detector.named_parameters():
            weight.mul_(factors.get(name, 1))
    return detector


def with_fixed_size_on(detector: Detector, devices: Sequence[str]) -> Detector:
    """The same detector (its weights are shared) that computes in the shapes of a GPU on these types of devices."""
    return Detector(detector.trunk, detector.pyramid, detector.dense, detector.regions, fixed_size_on=devices)
