"""Every setting of the configuration arrives at the part that it is for."""

from dataclasses import replace

import pytest
import torch

from maskrcnn_core.config import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    Category,
    MaskHeadConfig,
    ModelConfig,
    PyramidConfig,
    RoIConfig,
    RPNConfig,
)
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.anchors import AnchorRule
from maskrcnn_core.model.box_head import DetectionRule
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.region_detector import RoILossRule
from maskrcnn_core.model.roi_levels import LevelRule
from maskrcnn_core.model.rpn import ProposalRule, RPNLossRule

# No two numbers alike, and none a default.
CONFIG = ModelConfig(
    backbone=BackboneConfig(name="efficientnet_lite0", pretrained=False, frozen_stages=3),
    pyramid=PyramidConfig(channels=12),
    anchors=AnchorConfig(sizes=(9.0, 18.0, 36.0, 72.0, 144.0), ratios=(0.4, 1.5), rounded=True, fitted_strides=True),
    rpn=RPNConfig(
        convs=2,
        positive_overlap=0.61,
        negative_overlap=0.21,
        batch_size=33,
        positive_fraction=0.41,
        pre_nms_train=111,
        pre_nms_test=112,
        post_nms_train=113,
        post_nms_test=114,
        nms_overlap=0.62,
        min_size=1.25,
        smooth_l1_beta=0.15,
    ),
    roi=RoIConfig(
        positive_overlap=0.63,
        batch_size=34,
        positive_fraction=0.42,
        add_ground_truth=False,
        crowd_overlap=0.64,
        box_resolution=5,
        mask_resolution=6,
        sampling_ratio=3,
        aligned=False,
        canonical_size=100.0,
        canonical_level=3,
    ),
    box_head=BoxHeadConfig(
        channels=20,
        layers=3,
        class_agnostic=True,
        delta_weights=(1.0, 2.0, 3.0, 4.0),
        smooth_l1_beta=0.35,
        min_score=0.07,
        max_candidates=115,
        nms_overlap=0.65,
        max_detections=35,
        min_size=2.25,
    ),
    mask_head=MaskHeadConfig(channels=14, layers=5, class_agnostic=True, soft_targets=False),
    categories=(Category(3, "a"), Category(1, "b")),
)


def test_rules() -> None:
    detector = build_detector(CONFIG, load_pretrained=True)
    assert detector.anchors == AnchorRule((9.0, 18.0, 36.0, 72.0, 144.0), (0.4, 1.5), True, True)
    assert detector.train_proposals == ProposalRule(111, 113, 0.62, 1.25)
    assert detector.test_proposals == ProposalRule(112, 114, 0.62, 1.25)
    assert detector.rpn_loss == RPNLossRule(0.61, 0.21, 33, 0.41, 0.64, 0.15)
    assert detector.roi_loss == RoILossRule(0.63, 34, 0.42, False, 0.64, 0.35, False)
    assert detector.detection == DetectionRule((1.0, 2.0, 3.0, 4.0), 0.07, 115, 0.65, 35, 2.25)


def test_parts() -> None:
    detector = build_detector(CONFIG, load_pretrained=True)
    assert detector.num_classes == 2
    for part, resolution in ((detector.box_transform, 5), (detector.mask_transform, 6)):
        assert (part.resolution, part.sampling_ratio, part.aligned) == (resolution, 3, False)
        assert part.levels == LevelRule((4, 8, 16, 32), 100.0, 3)
    assert len(detector.rpn_head.convs) == 2
    assert detector.rpn_head.objectness.weight.shape == (2, 12, 1, 1)
    assert [tuple(layer.weight.shape) for layer in detector.box_head.layers] == [(20, 300), (20, 20), (20, 20)]
    assert detector.box_head.classes.out_features == 3
    assert detector.box_head.deltas.out_features == 4
    assert len(detector.mask_head.convs) == 5
    assert detector.mask_head.predictor.weight.shape == (1, 14, 1, 1)
    learnt = [name for name, parameter in detector.trunk.named_parameters() if parameter.requires_grad]
    assert learnt
    assert not [name for name in learnt if name.startswith(("network.conv_stem", "network.blocks.2"))]


def test_heads_for_each_class() -> None:
    config = replace(CONFIG, box_head=BoxHeadConfig(channels=20), mask_head=MaskHeadConfig(channels=14))
    detector = build_detector(config, load_pretrained=False)
    assert detector.box_head.deltas.out_features == 8
    assert detector.mask_head.predictor.out_channels == 2


def test_without_mask_head() -> None:
    detector = build_detector(replace(CONFIG, mask_head=MaskHeadConfig(enabled=False)), load_pretrained=False)
    assert detector.mask_head is None
    assert detector.mask_transform is None
    assert not any("mask" in key for key in detector.state_dict())


def test_backbone_weights_are_loaded_only_where_both_say_so() -> None:
    torch.manual_seed(0)
    stems = {
        (pretrained, load): build_detector(
            replace(CONFIG, backbone=replace(CONFIG.backbone, pretrained=pretrained)), load_pretrained=load
        ).state_dict()["trunk.network.conv_stem.weight"]
        for pretrained in (True, False)
        for load in (True, False)
    }
    torch.manual_seed(1)
    again = build_detector(replace(CONFIG, backbone=replace(CONFIG.backbone, pretrained=True)), load_pretrained=True)
    assert torch.equal(stems[True, True], again.state_dict()["trunk.network.conv_stem.weight"])
    for key in ((True, False), (False, True), (False, False)):
        assert not torch.equal(stems[key], stems[True, True])


def test_no_categories() -> None:
    with pytest.raises(ConfigError, match=r"model\.categories: got none"):
        build_detector(replace(CONFIG, categories=()), load_pretrained=False)
