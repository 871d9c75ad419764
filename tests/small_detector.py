"""The smallest detector that is whole: trunk, pyramid, proposals, boxes and masks; builds and runs in a moment."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from maskrcnn_core.config import (
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
