"""Configuration -> detector. The only file of the model that reads the configuration."""

from maskrcnn_core.config import ModelConfig, RoIConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.anchors import AnchorRule
from maskrcnn_core.model.backbones import build_trunk
from maskrcnn_core.model.box_head import BoxHead, DetectionRule
from maskrcnn_core.model.keypoint_head import KeypointHead
from maskrcnn_core.model.mask_head import MaskHead, MaskMLP
from maskrcnn_core.model.pyramids import Pyramid, build_pyramid
from maskrcnn_core.model.region_detector import RegionDetector, RegionHeads, RoILossRule
from maskrcnn_core.model.region_stage import RegionStage, take_region_stage
from maskrcnn_core.model.roi_levels import LevelRule
from maskrcnn_core.model.roi_transform import PyramidRoIAlign, PyramidRoIPool, PyramidRoIWarp, RoITransform
from maskrcnn_core.model.rpn import ProposalRule, RPNHead, RPNLossRule


def build_detector(config: ModelConfig, *, load_pretrained: bool) -> RegionDetector:
    """The detector that a configuration describes.

    Args:
        config: `categories` must be filled.
        load_pretrained: load the backbone's ImageNet weights where `config.backbone` names some; false where a
            checkpoint's weights follow.

    Raises:
        ConfigError: no categories, an unknown backbone, or parts that don't fit together.
        CheckpointError: the backbone's weights could not be had.
    """
    if len(config.categories) == 0:
        raise ConfigError("model.categories: got none, expected at least one category with id and name")
    backbone = config.backbone
    if backbone.norm == "sync_batch" and config.pyramid.kind == "c4":
        raise ConfigError(
            "model.backbone.norm: got sync_batch with model.pyramid.kind c4, whose last stage runs on regions, of "
            "which each worker has another number; use frozen or group, or another pyramid"
        )
    trunk = build_trunk(
        backbone.name,
        pretrained=backbone.pretrained and load_pretrained and not backbone.weights,
        frozen_stages=backbone.frozen_stages,
        stride_in_1x1=backbone.stride_in_1x1,
        dilated=config.pyramid.kind == "dc5",
        weights=backbone.weights if load_pretrained else "",
        norm=backbone.norm,
    )
    stage = take_region_stage(trunk) if config.pyramid.kind == "c4" else None
    pyramid = build_pyramid(
        config.pyramid.kind,
        trunk,
        channels=config.pyramid.channels,
        norm=config.pyramid.norm,
        levels=config.pyramid.levels,
        extra=config.pyramid.extra,
    )
    anchors = AnchorRule(
        config.anchors.sizes,
        config.anchors.ratios,
        config.anchors.rounded,
        config.anchors.fitted_strides,
        config.anchors.every_level,
    )
    return RegionDetector(
        trunk=trunk,
        pyramid=pyramid,
        rpn_head=RPNHead(pyramid.channels, anchors.per_position, config.rpn.convs) if config.rpn.enabled else None,
        heads=_heads(config, pyramid, stage) if config.box_head.enabled else None,
        num_classes=len(config.categories),
        anchors=anchors,
        train_proposals=_proposal_rule(config, config.rpn.pre_nms_train, config.rpn.post_nms_train),
        test_proposals=_proposal_rule(config, config.rpn.pre_nms_test, config.rpn.post_nms_test),
        rpn_loss=RPNLossRule(
            positive_overlap=config.rpn.positive_overlap,
            negative_overlap=config.rpn.negative_overlap,
            batch_size=config.rpn.batch_size,
            positive_fraction=config.rpn.positive_fraction,
            crowd_overlap=config.roi.crowd_overlap,
            smooth_l1_beta=config.rpn.smooth_l1_beta,
            box_loss=config.rpn.box_loss,
        ),
        roi_loss=RoILossRule(
            positive_overlap=config.roi.positive_overlap,
            batch_size=config.roi.batch_size,
            positive_fraction=config.roi.positive_fraction,
            add_ground_truth=config.roi.add_ground_truth,
            crowd_overlap=config.roi.crowd_overlap,
            smooth_l1_beta=config.box_head.smooth_l1_beta,
            soft_mask_targets=config.mask_head.soft_targets,
            box_loss=config.box_head.box_loss,
            keypoint_loss_weight=config.keypoint_head.loss_weight,
        ),
        detection=DetectionRule(
            delta_weights=config.box_head.delta_weights,
            min_score=config.box_head.min_score,
            max_candidates=config.box_head.max_candidates,
            nms_overlap=config.box_head.nms_overlap,
            max_detections=config.box_head.max_detections,
            min_size=config.box_head.min_size,
            nms=config.box_head.nms,
            soft_sigma=config.box_head.soft_sigma,
            nms_per_class=config.box_head.nms_per_class,
        ),
    )


def _heads(config: ModelConfig, pyramid: Pyramid, stage: RegionStage | None) -> RegionHeads:
    num_classes = len(config.categories)
    width = pyramid.channels if stage is None else stage.channels
    masks, keypoints = config.mask_head.enabled, config.keypoint_head.enabled

    def side(resolution: int) -> int:
        return resolution if stage is None else -(-resolution // stage.stride)

    return RegionHeads(
        stage=stage,
        box_transform=_transform(config.roi, config.roi.box_resolution, pyramid),
        box_head=BoxHead(
            width,
            side(config.roi.box_resolution),
            config.box_head.channels,
            config.box_head.layers,
            num_classes,
            class_agnostic=config.box_head.class_agnostic,
            convs=config.box_head.convs,
            conv_channels=config.box_head.conv_channels,
            conv_norm=config.box_head.conv_norm,
        ),
        mask_transform=_transform(config.roi, config.roi.mask_resolution, pyramid) if masks else None,
        mask_head=_mask_head(config, width, side(config.roi.mask_resolution)) if masks else None,
        masks_on_proposals=masks and config.mask_head.regions == "proposals",
        keypoint_transform=_transform(config.roi, config.roi.keypoint_resolution, pyramid) if keypoints else None,
        keypoint_head=(
            KeypointHead(
                width, config.keypoint_head.channels, config.keypoint_head.layers, len(config.keypoint_head.names)
            )
            if keypoints
            else None
        ),
        keypoint_labels=_keypoint_labels(config) if keypoints else (),
    )


def _transform(roi: RoIConfig, resolution: int, pyramid: Pyramid) -> RoITransform:
    strides = pyramid.strides[: pyramid.num_roi_levels]
    levels = LevelRule(tuple(strides), roi.canonical_size, roi.canonical_level)
    if roi.transform == "pool":
        return PyramidRoIPool(resolution, levels)
    if roi.transform == "warp":
        return PyramidRoIWarp(resolution, roi.sampling_ratio, levels, roi.reduction)
    return PyramidRoIAlign(resolution, roi.sampling_ratio, roi.aligned, levels, roi.reduction)


def _mask_head(config: ModelConfig, width: int, resolution: int) -> MaskHead | MaskMLP:
    head, num_classes = config.mask_head, len(config.categories)
    if head.kind == "mlp":
        return MaskMLP(
            width,
            resolution,
            head.channels,
            head.layers,
            num_classes,
            class_agnostic=head.class_agnostic,
            activation=head.activation,
        )
    return MaskHead(
        width,
        head.channels,
        head.layers,
        num_classes,
        class_agnostic=head.class_agnostic,
        activation=head.activation,
    )


def _keypoint_labels(config: ModelConfig) -> tuple[int, ...]:
    names = [category.name for category in config.categories]
    missing = [name for name in config.keypoint_head.categories if name not in names]
    if missing:
        raise ConfigError(
            f"model.keypoint_head.categories: got {missing[0]!r}, which is none of the categories "
            f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        )
    return tuple(names.index(name) for name in config.keypoint_head.categories)


def _proposal_rule(config: ModelConfig, pre_nms: int, post_nms: int) -> ProposalRule:
    return ProposalRule(pre_nms, post_nms, config.rpn.nms_overlap, config.rpn.min_size, min_score=config.rpn.min_score)
