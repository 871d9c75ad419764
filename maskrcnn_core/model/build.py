"""Configuration -> detector, one function a part. Of the model's files, only this one, `build_dense` and
`build_regions` read the configuration."""

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.build_dense import build_dense_stage
from maskrcnn_core.model.build_regions import build_region_stage
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
    dense = build_dense_stage(config, pyramid) if config.dense.enabled else None
    per_region = any(head.enabled for head in (config.box_head, config.mask_head, config.keypoint_head))
    regions = build_region_stage(config, pyramid, region_trunk) if per_region else None
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
