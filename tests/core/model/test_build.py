"""Every setting of the configuration arrives at the part that it is for."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.heads import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.config.trunk import BackboneConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.box_coding import DeltaCoding
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.dense.anchors import RatioAnchors
from maskrcnn_core.model.dense.losses import SampledLoss
from maskrcnn_core.model.dense.selection import ProposalRule
from maskrcnn_core.model.regions.levels import LevelRule
from maskrcnn_core.model.regions.parts import BoxLossRule
from maskrcnn_core.model.regions.sampling import SamplingRule
from maskrcnn_core.model.survivors import DetectionRule

# No two numbers alike, and none a default.
CONFIG = ModelConfig(
    backbone=BackboneConfig(name="efficientnet_lite0", pretrained=False, frozen_stages=3),
    pyramid=PyramidConfig(channels=12),
    dense=DenseConfig(
        anchors=AnchorConfig(
            sizes=(9.0, 18.0, 36.0, 72.0, 144.0), ratios=(0.4, 1.5), rounded=True, fitted_strides=True
        ),
        convs=2,
        positive_overlap=0.61,
        negative_overlap=0.21,
        batch_size=33,
        positive_fraction=0.41,
        crowd_overlap=0.66,
        pre_nms_train=111,
        pre_nms_test=112,
        post_nms_train=113,
        post_nms_test=114,
        nms_overlap=0.62,
        min_score=0.02,
        min_size=1.25,
        smooth_l1_beta=0.15,
    ),
    regions=RegionsConfig(
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
    dense, regions = detector.dense, detector.regions
    assert dense is not None
    assert regions is not None
    detection = DetectionRule(0.07, 115, 0.65, 35, 2.25)
    assert dense.anchors == RatioAnchors((9.0, 18.0, 36.0, 72.0, 144.0), (0.4, 1.5), True, True)
    assert dense.coding == DeltaCoding()
    assert dense.loss == SampledLoss(0.61, 0.21, 33, 0.41, 0.66, 0.15)
    assert dense.rules.train == ProposalRule(111, 113, 0.62, 1.25, 0.02)
    assert dense.rules.test == ProposalRule(112, 114, 0.62, 1.25, 0.02)
    assert dense.rules.detection == DetectionRule(0.05, 1000, 0.5, 100, 0.01)
    assert regions.sampling == SamplingRule(0.63, 34, 0.42, False, 0.64)
    assert regions.box.coding == DeltaCoding((1.0, 2.0, 3.0, 4.0))
    assert regions.box.loss == BoxLossRule(0.35)
    assert regions.box.detection == detection
    assert not regions.mask.soft_targets
    assert not regions.mask.on_proposals


def test_settings_of_other_kinds() -> None:
    config = replace(
        CONFIG,
        dense=replace(CONFIG.dense, box_loss="giou"),
        box_head=replace(CONFIG.box_head, box_loss="ciou", nms="soft_linear", soft_sigma=0.25, nms_per_class=False),
        mask_head=replace(CONFIG.mask_head, regions="proposals", soft_targets=True),
        keypoint_head=KeypointHeadConfig(
            enabled=True, channels=8, layers=2, names=("x", "y"), categories=("b",), loss_weight=0.7
        ),
    )
    detector = build_detector(config, load_pretrained=False)
    regions = detector.regions
    assert detector.dense.loss.box_loss == "giou"
    assert regions.box.loss == BoxLossRule(0.35, "ciou")
    rule = DetectionRule(0.07, 115, 0.65, 35, 2.25, nms="soft_linear", soft_sigma=0.25, nms_per_class=False)
    assert regions.box.detection == rule
    assert regions.mask.soft_targets
    assert regions.mask.on_proposals
    assert regions.keypoints.has_keypoints.tolist() == [False, True, False]
    assert regions.keypoints.loss_weight == 0.7
    assert len(regions.keypoints.head.convs) == 2
    assert regions.keypoints.head.deconv.out_channels == 2
    assert regions.keypoints.transform.bins == 14


def test_parts() -> None:
    detector = build_detector(CONFIG, load_pretrained=True)
    assert detector.regions.num_classes == 2
    for part, bins in ((detector.regions.box, 5), (detector.regions.mask, 6)):
        transform = part.transform
        assert (transform.bins, transform.sampling_ratio, transform.aligned) == (bins, 3, False)
        assert transform.levels == LevelRule((4, 8, 16, 32), 100.0, 3)
    assert len(detector.dense.head.convs) == 2
    assert detector.dense.head.logits.weight.shape == (2, 12, 1, 1)
    assert [layer.weight.shape for layer in detector.regions.box.head.layers] == [(20, 300), (20, 20), (20, 20)]
    assert detector.regions.box.head.classes.out_features == 3
    assert detector.regions.box.head.deltas.out_features == 4
    mask_head: Any = detector.regions.mask.head
    assert len(mask_head.convs) == 5
    assert mask_head.predictor.weight.shape == (1, 14, 1, 1)
    learnt = [name for name, parameter in detector.trunk.named_parameters() if parameter.requires_grad]
    assert learnt
    assert not [name for name in learnt if name.startswith(("network.conv_stem", "network.blocks.2"))]


def test_heads_for_each_class() -> None:
    config = replace(CONFIG, box_head=BoxHeadConfig(channels=20), mask_head=MaskHeadConfig(channels=14))
    detector = build_detector(config, load_pretrained=False)
    assert detector.regions.box.head.deltas.out_features == 8
    assert detector.regions.mask.head.predictor.out_channels == 2


def test_without_mask_head() -> None:
    detector = build_detector(replace(CONFIG, mask_head=MaskHeadConfig(enabled=False)), load_pretrained=False)
    assert detector.regions.mask is None
    assert detector.regions.keypoints is None
    assert not any("mask" in key for key in detector.state_dict())


def test_without_a_stage() -> None:
    proposing = replace(CONFIG, box_head=BoxHeadConfig(enabled=False), mask_head=MaskHeadConfig(enabled=False))
    assert build_detector(proposing, load_pretrained=False).regions is None
    given = replace(CONFIG, dense=replace(CONFIG.dense, enabled=False))
    assert build_detector(given, load_pretrained=False).dense is None


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
