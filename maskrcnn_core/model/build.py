"""Configuration -> detector, one function a part. The only file of the model that reads the configuration."""

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_anchors import AnchorConfig
from maskrcnn_core.config.dense_detection import DenseDetectionConfig
from maskrcnn_core.config.heads import BoxHeadConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.box_coding import BoxCoding, DeltaCoding, EdgeCoding
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
from maskrcnn_core.model.heads.box import BoxHead
from maskrcnn_core.model.heads.keypoint import KeypointHead
from maskrcnn_core.model.heads.mask import MaskHead, MaskMLP
from maskrcnn_core.model.pyramids.pyramid import Pyramid, build_pyramid
from maskrcnn_core.model.pyramids.tail import TailRule
from maskrcnn_core.model.regions.levels import LevelRule
from maskrcnn_core.model.regions.parts import BoxLossRule, BoxPart, KeypointPart, MaskPart
from maskrcnn_core.model.regions.region_stage import RegionStage
from maskrcnn_core.model.regions.region_trunk import RegionTrunk, take_region_trunk
from maskrcnn_core.model.regions.sampling import SamplingRule
from maskrcnn_core.model.regions.transform import PyramidRoIAlign, PyramidRoIPool, PyramidRoIWarp, RoITransform
from maskrcnn_core.model.survivors import DetectionRule
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
    trunk = _trunk(config, load_pretrained)
    region_trunk = take_region_trunk(trunk) if config.pyramid.kind == "c4" else None
    pyramid = _pyramid(config, trunk)
    dense = _dense_stage(config, pyramid) if config.dense.enabled else None
    per_region = any(head.enabled for head in (config.box_head, config.mask_head, config.keypoint_head))
    regions = _region_stage(config, pyramid, region_trunk) if per_region else None
    return Detector(trunk, pyramid, dense, regions)


def _trunk(config: ModelConfig, load_pretrained: bool) -> Trunk:
    backbone = config.backbone
    if backbone.norm == "sync_batch" and config.pyramid.kind == "c4":
        raise ConfigError(
            "model.backbone.norm: got sync_batch with model.pyramid.kind c4, whose last stage runs on regions, of "
            "which each worker has another number; use frozen or group, or another pyramid"
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
        return LevelHead(
            pyramid.level_channels,
            num_anchors,
            num_logits,
            kernel=head.kernel,
            depthwise=head.depthwise,
            norm=head.norm,
        )
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


def _region_stage(config: ModelConfig, pyramid: Pyramid, trunk: RegionTrunk | None) -> RegionStage:
    regions = config.regions
    return RegionStage(
        _box_part(config, pyramid, trunk) if config.box_head.enabled else None,
        _mask_part(config, pyramid, trunk) if config.mask_head.enabled else None,
        _keypoint_part(config, pyramid, trunk) if config.keypoint_head.enabled else None,
        trunk=trunk,
        sampling=SamplingRule(
            positive_overlap=regions.positive_overlap,
            batch_size=regions.batch_size,
            positive_fraction=regions.positive_fraction,
            add_ground_truth=regions.add_ground_truth,
            crowd_overlap=regions.crowd_overlap,
        ),
        num_classes=len(config.categories),
    )


def _box_part(config: ModelConfig, pyramid: Pyramid, trunk: RegionTrunk | None) -> BoxPart:
    box, bins = config.box_head, config.regions.box_resolution
    head = BoxHead(
        _width(pyramid, trunk),
        _side(bins, trunk),
        box.channels,
        box.layers,
        len(config.categories),
        class_agnostic=box.class_agnostic,
        convs=box.convs,
        conv_channels=box.conv_channels,
        conv_norm=box.conv_norm,
    )
    coding, loss = DeltaCoding(box.delta_weights), BoxLossRule(box.smooth_l1_beta, box.box_loss)
    return BoxPart(_transform(config.regions, bins, pyramid), head, coding, loss, detection_rule(box))


def _mask_part(config: ModelConfig, pyramid: Pyramid, trunk: RegionTrunk | None) -> MaskPart:
    bins = config.regions.mask_resolution
    return MaskPart(
        _transform(config.regions, bins, pyramid),
        _mask_head(config, _width(pyramid, trunk), _side(bins, trunk)),
        on_proposals=config.mask_head.regions == "proposals",
        soft_targets=config.mask_head.soft_targets,
    )


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


def _keypoint_part(config: ModelConfig, pyramid: Pyramid, trunk: RegionTrunk | None) -> KeypointPart:
    keypoints, bins = config.keypoint_head, config.regions.keypoint_resolution
    return KeypointPart(
        _transform(config.regions, bins, pyramid),
        KeypointHead(_width(pyramid, trunk), keypoints.channels, keypoints.layers, len(keypoints.names)),
        _keypoint_labels(config),
        len(config.categories),
        keypoints.loss_weight,
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


def _transform(regions: RegionsConfig, bins: int, pyramid: Pyramid) -> RoITransform:
    strides = tuple(pyramid.strides[: pyramid.num_roi_levels])
    levels = LevelRule(strides, regions.canonical_size, regions.canonical_level)
    if regions.transform == "pool":
        return PyramidRoIPool(bins, levels)
    if regions.transform == "warp":
        return PyramidRoIWarp(bins, regions.sampling_ratio, levels, regions.reduction)
    return PyramidRoIAlign(bins, regions.sampling_ratio, regions.aligned, levels, regions.reduction)


def _width(pyramid: Pyramid, trunk: RegionTrunk | None) -> int:
    """Channels of region features as the heads see them."""
    return pyramid.channels if trunk is None else trunk.channels


def _side(bins: int, trunk: RegionTrunk | None) -> int:
    """Side of region features as the heads see them."""
    return bins if trunk is None else -(-bins // trunk.stride)


def detection_rule(detection: BoxHeadConfig | DenseDetectionConfig) -> DetectionRule:
    """Which scored boxes become detections."""
    return DetectionRule(
        min_score=detection.min_score,
        max_candidates=detection.max_candidates,
        nms_overlap=detection.nms_overlap,
        max_detections=detection.max_detections,
        min_size=detection.min_size,
        nms=detection.nms,
        soft_sigma=detection.soft_sigma,
        nms_per_class=detection.nms_per_class,
        clip_first=isinstance(detection, BoxHeadConfig) or detection.clip == "before_nms",
    )
