"""Configuration -> dense stage, one function a part: the half of `build` that is about positions."""

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_detection import DenseDetectionConfig
from maskrcnn_core.config.heads import BoxHeadConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.box_coding import BoxCoding, DeltaCoding, EdgeCoding
from maskrcnn_core.model.cell_coding import CellCoding, RootCoding
from maskrcnn_core.model.corner_coding import CornerCoding, WindowCoding
from maskrcnn_core.model.dense.anchors import AnchorRule, OctaveAnchors, PriorAnchors, RatioAnchors
from maskrcnn_core.model.dense.assigned_loss import AssignedLoss
from maskrcnn_core.model.dense.box_mask_head import BoxMaskHead
from maskrcnn_core.model.dense.box_mask_loss import BoxMaskLoss
from maskrcnn_core.model.dense.cell_head import CellHead
from maskrcnn_core.model.dense.cell_loss import CellLoss
from maskrcnn_core.model.dense.dense_stage import DenseRules, DenseStage
from maskrcnn_core.model.dense.focal_loss import FocalLoss
from maskrcnn_core.model.dense.global_head import GlobalHead
from maskrcnn_core.model.dense.grid_loss import GridLoss
from maskrcnn_core.model.dense.hard_negative_loss import HardNegativeLoss
from maskrcnn_core.model.dense.head import DenseHead
from maskrcnn_core.model.dense.image_anchors import ImageAnchors
from maskrcnn_core.model.dense.level_head import LevelHead
from maskrcnn_core.model.dense.losses import DenseLoss, SampledLoss
from maskrcnn_core.model.dense.point_loss import PointLoss
from maskrcnn_core.model.dense.selection import ProposalRule
from maskrcnn_core.model.dense.shared_head import SharedHead
from maskrcnn_core.model.dense.tower_head import TowerHead
from maskrcnn_core.model.dense.whole_map_head import WholeMapHead
from maskrcnn_core.model.dense.window_head import WindowHead
from maskrcnn_core.model.pyramids.pyramid import Pyramid
from maskrcnn_core.model.survivors import DetectionRule


def build_dense_stage(config: ModelConfig, pyramid: Pyramid) -> DenseStage:
    """The dense stage that a configuration describes, on a pyramid.

    Raises:
        ConfigError: parts that don't fit together.
    """
    dense, detection = config.dense, config.dense.detection
    anchors = _anchors(config)
    return DenseStage(
        _dense_head(config, pyramid, anchors.per_level(len(pyramid.strides))),
        anchors,
        _dense_coding(config, pyramid.strides[0]),
        _dense_loss(dense),
        DenseRules(
            train=_proposal_rule(dense, dense.pre_nms_train, dense.post_nms_train),
            test=_proposal_rule(dense, dense.pre_nms_test, dense.post_nms_test),
            detection=detection_rule(detection),
            score_from=detection.score_from,
            candidates_of=detection.candidates_of,
        ),
    )


def _anchors(config: ModelConfig) -> AnchorRule:
    anchors = config.dense.anchors
    if anchors.kind == "boxes":
        return ImageAnchors(anchors.boxes, _input_side(config))
    if anchors.kind == "priors":
        grid = config.dense.head.grid if config.dense.head.kind == "box_masks" else 0
        return PriorAnchors(
            anchors.priors, anchors.spacing, anchors.fitted_strides, 0.5 if grid else anchors.offset, grid
        )
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
    if head.kind == "box_masks":
        side = _input_side(config)
        return BoxMaskHead(
            pyramid.channels,
            _map_side(config, pyramid.strides[0]),
            head.grid,
            [(width / side, height / side) for width, height in dense.anchors.priors[0]],
            num_logits,
            widths=head.layers,
            dropout=head.dropout,
        )
    if head.kind == "windows":
        return WindowHead(
            pyramid.channels,
            head.pool,
            head.window,
            num_logits,
            widths=head.layers,
            box_widths=head.box_layers,
            dropout=head.dropout,
        )
    if head.kind == "global":
        return GlobalHead(
            pyramid.channels,
            _map_side(config, pyramid.strides[0]),
            num_anchors[0],
            num_logits,
            widths=head.layers,
            dropout=head.dropout,
            prior=head.prior,
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
    return -(-_input_side(config) // stride)


def _input_side(config: ModelConfig) -> int:
    """Pixels along a side of every input."""
    if config.input.fit == "aspect":
        raise ConfigError(
            f"model.input.fit: got {config.input.fit}, expected square or letterbox where model.dense.head.kind is "
            f"{config.dense.head.kind}, which sees inputs of one size"
        )
    return -(-config.input.short_side // config.input.divisor) * config.input.divisor


def _dense_coding(config: ModelConfig, cell: int) -> BoxCoding:
    coding = config.dense.coding
    if coding.kind == "cells":
        return CellCoding(cell)
    if coding.kind == "roots":
        return RootCoding(cell)
    if coding.kind == "corners":
        return CornerCoding(_input_side(config))
    if coding.kind == "window":
        return WindowCoding()
    return EdgeCoding() if coding.kind == "edges" else DeltaCoding(coding.weights)


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
    if loss.kind == "box_masks":
        return BoxMaskLoss(loss.empty_weight)
    if loss.kind == "assigned":
        return AssignedLoss(dense.crowd_overlap, loss.box_weight, loss.class_weight)
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
