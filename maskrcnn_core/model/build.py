"""Configuration -> detector, one function a part. With `build_dense` the only file of the model that reads the
configuration."""

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.box_coding import DeltaCoding
from maskrcnn_core.model.build_dense import build_dense_stage, detection_rule
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
    dense = build_dense_stage(config, pyramid) if config.dense.enabled else None
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
