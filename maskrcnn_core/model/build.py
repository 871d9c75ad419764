"""Configuration -> detector, one function a part. Of the model's files, only this one and `build_regions` read the
configuration."""

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.box_coding import BoxCoding, DeltaCoding, EdgeCoding
from maskrcnn_core.model.build_regions import detection_rule, region_stage
from maskrcnn_core.model.cell_coding import CellCoding, RootCoding
from maskrcnn_core.model.dense.anchors import AnchorRule, OctaveAnchors, PriorAnchors, RatioAnchors
from maskrcnn_core.model.dense.cell_head import CellHead
from maskrcnn_core.model.dense.cell_loss import CellLoss
from maskrcnn_core.model.dense.dense_stage import DenseRules, DenseStage
from maskrcnn_core.model.dense.focal_loss import FocalLoss
from maskrcnn_core.model.dense.grid_loss import GridLoss
from maskrcnn_core.model.dense.hard_negative_loss import HardNegativeLoss
from maskrcnn_core.model.dense.head import DenseHead
from maskrcnn_core.model.dense.level_head import LevelHead
from maskrcnn_core.model.dense.losses import DenseLoss, SampledLoss
from maskrcnn_core.model.dense.point_loss import PointLoss
from maskrcnn_core.model.dense.selection import ProposalRule
from maskrcnn_core.model.dense.shared_head import SharedHead
from maskrcnn_core.model.dense.tower_head import TowerHead
from maskrcnn_core.model.dense.whole_map_head import WholeMapHead
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.model.pyramids.pyramid import Pyramid, build_pyramid
from maskrcnn_core.model.pyramids.tail import TailRule
from maskrcnn_core.model.regions.region_trunk import RegionNetwork, RegionTrunk, take_region_trunk
from maskrcnn_core.model.trunks.pixels import PixelTrunk
from maskrcnn_core.model.trunks.trunk import Trunk, build_trunk


def build_detector(config: ModelConfig, *, load_pretrained: bool) -> Detector:
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
    trunk = PixelTrunk() if config.pyramid.kind == "pixels" else _trunk(config, load_pretrained)
    region_trunk = _region_trunk(config, trunk, load_pretrained)
    pyramid = _pyramid(config, trunk)
    dense = _dense_stage(config, pyramid) if config.dense.enabled else None
    per_region = any(head.enabled for head in (config.box_head, config.mask_head, config.keypoint_head))
    regions = region_stage(config, pyramid, region_trunk) if per_region else None
    return Detector(trunk, pyramid, dense, regions)


def _trunk(config: ModelConfig, load_pretrained: bool) -> Trunk:
    backbone = config.backbone
    cause = _runs_on_regions(config)
    if backbone.norm == "sync_batch" and cause:
        raise ConfigError(
            f"model.backbone.norm: got sync_batch with {cause} runs on regions, of which each worker has another "
            "number; use frozen or group, or another pyramid"
        )
    return build_trunk(
        backbone.name,
        pretrained=backbone.pretrained and load_pretrained and not backbone.weights,
        frozen_stages=backbone.frozen_stages,
        stride_in_1x1=backbone.stride_in_1x1,
        dilated=config.pyramid.kind == "dc5",
        weights=backbone.weights if load_pretrained else "",
        norm=backbone.norm,
        padding=backbone.padding,
    )


def _runs_on_regions(config: ModelConfig) -> str:
    """What of the backbone does, and why; empty = nothing."""
    if config.pyramid.kind == "c4":
        return "model.pyramid.kind c4, whose last stage"
    return "model.regions.transform crop, whose network" if config.regions.transform == "crop" else ""


def _region_trunk(config: ModelConfig, trunk: Trunk, load_pretrained: bool) -> RegionTrunk | RegionNetwork | None:
    """What is computed between the RoI transforms and the heads."""
    transform = config.regions.transform
    if transform == "crop":
        return RegionNetwork(_trunk(config, load_pretrained))
    region_trunk = take_region_trunk(trunk) if config.pyramid.kind == "c4" else None
    if region_trunk is not None and transform in ("position_pool", "position_align", "spatial_pyramid"):
        raise ConfigError(
            f"model.regions.transform: got {transform} with model.pyramid.kind c4 of {config.backbone.name}, whose "
            "last stage runs on grids of regions; use dc5 or fpn, or alexnet or vgg16, whose last stage is a pool"
        )
    return region_trunk


def _pyramid(config: ModelConfig, trunk: Trunk) -> Pyramid:
    pyramid = config.pyramid
    tail = TailRule(
        pyramid.tail_channels,
        pyramid.tail_steps,
        depthwise=pyramid.tail_layers == "depthwise",
        activation=pyramid.tail_activation,
        l2_scale=pyramid.l2_scale,
        tensorflow=config.backbone.padding == "tensorflow",
    )
    return build_pyramid(
        pyramid.kind,
        trunk,
        channels=pyramid.channels,
        norm=pyramid.norm,
        levels=pyramid.levels,
        extra=pyramid.extra,
        tail=tail,
        narrow=pyramid.narrow,
        image_scales=pyramid.image_scales,
    )


def _dense_stage(config: ModelConfig, pyramid: Pyramid) -> DenseStage:
    dense, detection = config.dense, config.dense.detection
    anchors = _anchors(dense.anchors)
    return DenseStage(
        _dense_head(config, pyramid, anchors.per_level(len(pyramid.strides))),
        anchors,
        _dense_coding(dense, pyramid.strides[0]),
        _dense_loss(dense),
        DenseRules(
            train=_proposal_rule(dense, dense.pre_nms_train, dense.post_nms_train),
            test=_proposal_rule(dense, dense.pre_nms_test, dense.post_nms_test),
            detection=detection_rule(detection),
            score_from=detection.score_from,
            candidates_of=detection.candidates_of,
        ),
    )


def _anchors(anchors: AnchorConfig) -> AnchorRule:
    if anchors.kind == "priors":
        return PriorAnchors(anchors.priors, anchors.spacing, anchors.fitted_strides, anchors.offset)
    if anchors.kind == "octaves":
        return OctaveAnchors(
            anchors.sizes,
            anchors.ratios,
            anchors.octave_steps,
            anchors.whole_sizes,
            anchors.rounded,
            anchors.fitted_strides,
            anchors.offset,
        )
    return RatioAnchors(
        anchors.sizes,
        anchors.ratios,
        anchors.rounded,
        anchors.fitted_strides,
        anchors.every_level,
        anchors.offset,
    )


def _dense_head(config: ModelConfig, pyramid: Pyramid, num_anchors: tuple[int, ...]) -> DenseHead:
    """Args: num_anchors at each position of each level."""
    dense, head = config.dense, config.dense.head
    num_classes = len(config.categories) if dense.finds == "detections" else 1
    num_logits = num_classes + (dense.detection.score_from == "softmax")  # background's, too
    if head.kind == "levels":
        return LevelHead(pyramid.level_channels, num_anchors, num_logits, depthwise=head.depthwise, norm=head.norm)
    _check_alike(pyramid, num_anchors, head.kind)
    if head.kind == "towers":
        return TowerHead(
            pyramid.channels,
            num_anchors[0],
            dense.convs,
            num_logits,
            norm=head.norm,
            norm_bias=head.norm_bias,
            objectness=head.objectness,
            prior=head.prior,
        )
    if head.kind == "cells":
        return CellHead(pyramid.channels, head.width, num_anchors[0], dense.convs, num_logits, norm=head.norm)
    if head.kind == "whole_map":
        return WholeMapHead(
            pyramid.channels,
            _map_side(config, pyramid.strides[0]),
            num_anchors[0],
            num_logits,
            local=head.local,
            widths=head.layers,
            dropout=head.dropout,
        )
    return SharedHead(pyramid.channels, num_anchors[0], dense.convs, num_logits)


def _check_alike(pyramid: Pyramid, num_anchors: tuple[int, ...], kind: str) -> None:
    """Heads that work on every level alike need levels that are alike.

    Raises:
        ConfigError: they are not.
    """
    for what, numbers in (("widths", pyramid.level_channels), ("anchors", num_anchors)):
        if len(set(numbers)) > 1:
            raise ConfigError(
                f"model.dense.head.kind: got {kind}, which works on every level alike, for levels with {numbers} "
                f"{what}; use levels"
            )


def _map_side(config: ModelConfig, stride: int) -> int:
    """Cells along a side of the map, where all inputs have one size."""
    if config.input.fit == "aspect":
        raise ConfigError(
            f"model.input.fit: got {config.input.fit}, expected square or letterbox where model.dense.head.kind is "
            "whole_map, which sees inputs of one size"
        )
    padded = -(-config.input.short_side // config.input.divisor) * config.input.divisor
    return -(-padded // stride)


def _dense_coding(dense: DenseConfig, cell: int) -> BoxCoding:
    if dense.coding.kind == "cells":
        return CellCoding(cell)
    if dense.coding.kind == "roots":
        return RootCoding(cell)
    return EdgeCoding() if dense.coding.kind == "edges" else DeltaCoding(dense.coding.weights)


def _dense_loss(dense: DenseConfig) -> DenseLoss:
    loss = dense.loss
    if loss.kind == "cells":
        return CellLoss(
            ignore_overlap=dense.negative_overlap,
            crowd_overlap=dense.crowd_overlap,
            object_weight=loss.object_weight,
            empty_weight=loss.empty_weight,
            box_weight=loss.box_weight,
            class_weight=loss.class_weight,
            warm_up_images=loss.warm_up_images,
        )
    if loss.kind == "grid":
        return GridLoss(loss.object_weight, loss.empty_weight, loss.box_weight, loss.class_weight)
    if loss.kind == "focal":
        return FocalLoss(
            positive_overlap=dense.positive_overlap,
            negative_overlap=dense.negative_overlap,
            crowd_overlap=dense.crowd_overlap,
            alpha=loss.alpha,
            gamma=loss.gamma,
            divisor=loss.divisor,
            smooth_l1_beta=dense.smooth_l1_beta,
            box_loss=dense.box_loss,
        )
    if loss.kind == "points":
        return PointLoss(
            crowd_overlap=dense.crowd_overlap,
            alpha=loss.alpha,
            gamma=loss.gamma,
            centre_radius=loss.centre_radius,
            smooth_l1_beta=dense.smooth_l1_beta,
            box_loss=dense.box_loss,
        )
    if loss.kind == "hard_negatives":
        return HardNegativeLoss(
            positive_overlap=dense.positive_overlap,
            crowd_overlap=dense.crowd_overlap,
            negatives_per_positive=loss.negatives_per_positive,
            softmax=dense.detection.score_from == "softmax",
            smooth_l1_beta=dense.smooth_l1_beta,
            box_loss=dense.box_loss,
        )
    return SampledLoss(
        positive_overlap=dense.positive_overlap,
        negative_overlap=dense.negative_overlap,
        batch_size=dense.batch_size,
        positive_fraction=dense.positive_fraction,
        crowd_overlap=dense.crowd_overlap,
        smooth_l1_beta=dense.smooth_l1_beta,
        box_loss=dense.box_loss,
    )


def _proposal_rule(dense: DenseConfig, pre_nms: int, post_nms: int) -> ProposalRule:
    return ProposalRule(pre_nms, post_nms, dense.nms_overlap, dense.min_size, min_score=dense.min_score)
