"""Configuration -> detector. The only file of the model that reads the configuration."""

from maskrcnn_core.config import ModelConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.anchors import AnchorRule
from maskrcnn_core.model.backbones import STRIDES, build_trunk
from maskrcnn_core.model.box_head import BoxHead, DetectionRule
from maskrcnn_core.model.fpn import FPN
from maskrcnn_core.model.mask_head import MaskHead
from maskrcnn_core.model.region_detector import RegionDetector, RoILossRule
from maskrcnn_core.model.roi_transform import PyramidRoIAlign
from maskrcnn_core.model.rpn import ProposalRule, RPNHead, RPNLossRule


def build_detector(config: ModelConfig, *, load_pretrained: bool) -> RegionDetector:
    """The detector that a configuration describes.

    Args:
        config: `categories` must be filled.
        load_pretrained: load the backbone's ImageNet weights where `config.backbone.pretrained`; false where a
            checkpoint's weights follow.

    Raises:
        ConfigError: no categories, or an unknown backbone.
        CheckpointError: the backbone's weights could not be fetched.
    """
    num_classes = len(config.categories)
    if num_classes == 0:
        raise ConfigError("model.categories: got none, expected at least one category with id and name")
    trunk = build_trunk(
        config.backbone.name,
        pretrained=config.backbone.pretrained and load_pretrained,
        frozen_stages=config.backbone.frozen_stages,
    )
    width = config.fpn.channels
    masks = config.mask_head.enabled
    return RegionDetector(
        trunk=trunk,
        fpn=FPN(trunk.channels, width),
        rpn_head=RPNHead(width, len(config.anchors.ratios), config.rpn.convs),
        box_transform=_roi_align(config, config.roi.box_resolution),
        box_head=BoxHead(
            width,
            config.roi.box_resolution,
            config.box_head.channels,
            config.box_head.layers,
            num_classes,
            class_agnostic=config.box_head.class_agnostic,
        ),
        mask_transform=_roi_align(config, config.roi.mask_resolution) if masks else None,
        mask_head=_mask_head(config, num_classes) if masks else None,
        num_classes=num_classes,
        anchors=AnchorRule(
            config.anchors.sizes, config.anchors.ratios, config.anchors.rounded, config.anchors.fitted_strides
        ),
        train_proposals=_proposal_rule(config, config.rpn.pre_nms_train, config.rpn.post_nms_train),
        test_proposals=_proposal_rule(config, config.rpn.pre_nms_test, config.rpn.post_nms_test),
        rpn_loss=RPNLossRule(
            positive_overlap=config.rpn.positive_overlap,
            negative_overlap=config.rpn.negative_overlap,
            batch_size=config.rpn.batch_size,
            positive_fraction=config.rpn.positive_fraction,
            crowd_overlap=config.roi.crowd_overlap,
            smooth_l1_beta=config.rpn.smooth_l1_beta,
        ),
        roi_loss=RoILossRule(
            positive_overlap=config.roi.positive_overlap,
            batch_size=config.roi.batch_size,
            positive_fraction=config.roi.positive_fraction,
            add_ground_truth=config.roi.add_ground_truth,
            crowd_overlap=config.roi.crowd_overlap,
            smooth_l1_beta=config.box_head.smooth_l1_beta,
            soft_mask_targets=config.mask_head.soft_targets,
        ),
        detection=DetectionRule(
            delta_weights=config.box_head.delta_weights,
            min_score=config.box_head.min_score,
            max_candidates=config.box_head.max_candidates,
            nms_overlap=config.box_head.nms_overlap,
            max_detections=config.box_head.max_detections,
            min_size=config.box_head.min_size,
        ),
    )


def _roi_align(config: ModelConfig, resolution: int) -> PyramidRoIAlign:
    return PyramidRoIAlign(
        resolution,
        config.roi.sampling_ratio,
        config.roi.aligned,
        STRIDES,
        config.roi.canonical_size,
        config.roi.canonical_level,
    )


def _mask_head(config: ModelConfig, num_classes: int) -> MaskHead:
    return MaskHead(
        config.fpn.channels,
        config.mask_head.channels,
        config.mask_head.layers,
        num_classes,
        class_agnostic=config.mask_head.class_agnostic,
    )


def _proposal_rule(config: ModelConfig, pre_nms: int, post_nms: int) -> ProposalRule:
    return ProposalRule(pre_nms, post_nms, config.rpn.nms_overlap, config.rpn.min_size)
