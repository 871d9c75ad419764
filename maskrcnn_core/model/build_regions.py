"""Configuration -> region stage, one function a part: the half of `build` that is about regions."""

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.box_coding import DeltaCoding
from maskrcnn_core.model.build_dense import detection_rule
from maskrcnn_core.model.heads.box import BoxHead
from maskrcnn_core.model.heads.keypoint import KeypointHead
from maskrcnn_core.model.heads.mask import MaskHead, MaskMLP
from maskrcnn_core.model.heads.voting import VotingHead
from maskrcnn_core.model.pyramids.image_pyramid import ImagePyramid
from maskrcnn_core.model.pyramids.pyramid import Pyramid
from maskrcnn_core.model.regions.image_crop import ImageCrop
from maskrcnn_core.model.regions.levels import LevelRule
from maskrcnn_core.model.regions.parts import BoxLossRule, BoxPart, KeypointPart, MaskPart
from maskrcnn_core.model.regions.position_sensitive import PositionSensitiveScores
from maskrcnn_core.model.regions.region_stage import RegionStage
from maskrcnn_core.model.regions.region_trunk import RegionNetwork, RegionTrunk
from maskrcnn_core.model.regions.sampling import SamplingRule
from maskrcnn_core.model.regions.spatial_pyramid import ScaleRule, SpatialPyramid
from maskrcnn_core.model.regions.transform import PyramidRoIAlign, PyramidRoIPool, PyramidRoIWarp, RoITransform


def build_region_stage(config: ModelConfig, pyramid: Pyramid, trunk: RegionTrunk | RegionNetwork | None) -> RegionStage:
    """The heads, and what they see of each region; `trunk` is computed between the two."""
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
            hardest=regions.sampling == "hardest",
            hardest_nms_overlap=regions.hardest_nms_overlap,
        ),
        num_classes=len(config.categories),
    )


def _box_part(config: ModelConfig, pyramid: Pyramid, trunk: RegionTrunk | RegionNetwork | None) -> BoxPart:
    box, transform = config.box_head, _box_transform(config, pyramid)
    return BoxPart(
        transform,
        _voting_head(config) if _votes(config.regions) else _box_head(config, transform, pyramid, trunk),
        DeltaCoding(box.delta_weights),
        BoxLossRule(box.smooth_l1_beta, box.box_loss),
        detection_rule(box),
    )


def _votes(regions: RegionsConfig) -> bool:
    return regions.transform in ("position_pool", "position_align")


def _voting_head(config: ModelConfig) -> VotingHead:
    return VotingHead(len(config.categories), class_agnostic=config.box_head.class_agnostic)


def _box_head(
    config: ModelConfig, transform: RoITransform, pyramid: Pyramid, trunk: RegionTrunk | RegionNetwork | None
) -> BoxHead:
    box, bins = config.box_head, transform.bins
    return BoxHead(
        _width(pyramid, trunk),
        (bins, 1) if config.regions.transform == "spatial_pyramid" else _side(bins, trunk),
        box.channels,
        box.layers,
        len(config.categories),
        class_agnostic=box.class_agnostic,
        convs=box.convs,
        conv_channels=box.conv_channels,
        conv_norm=box.conv_norm,
    )


def _mask_part(config: ModelConfig, pyramid: Pyramid, trunk: RegionTrunk | RegionNetwork | None) -> MaskPart:
    transform = _transform(config.regions, config.regions.mask_resolution, pyramid)
    return MaskPart(
        transform,
        _mask_head(config, _width(pyramid, trunk), _side(transform.bins, trunk)),
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


def _keypoint_part(config: ModelConfig, pyramid: Pyramid, trunk: RegionTrunk | RegionNetwork | None) -> KeypointPart:
    keypoints = config.keypoint_head
    return KeypointPart(
        _transform(config.regions, config.regions.keypoint_resolution, pyramid),
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


def _box_transform(config: ModelConfig, pyramid: Pyramid) -> RoITransform:
    regions = config.regions
    if _votes(regions):
        votes = _voting_head(config)
        return PositionSensitiveScores(
            pyramid.channels,
            votes.num_scores,
            votes.num_deltas,
            regions.box_resolution,
            _levels(regions, pyramid),
            reduced=regions.reduced_channels,
            sampling_ratio=regions.sampling_ratio if regions.transform == "position_align" else None,
            rounding=regions.rounding,
        )
    if regions.transform == "spatial_pyramid":
        if isinstance(pyramid, ImagePyramid):
            scales = ScaleRule(pyramid.scales, pyramid.strides[0], regions.canonical_size)
            return SpatialPyramid(regions.pyramid_levels, scales)
        return SpatialPyramid(regions.pyramid_levels, _levels(regions, pyramid))
    return _transform(regions, regions.box_resolution, pyramid)


def _levels(regions: RegionsConfig, pyramid: Pyramid) -> LevelRule:
    strides = tuple(pyramid.strides[: pyramid.num_roi_levels])
    return LevelRule(strides, regions.canonical_size, regions.canonical_level)


def _transform(regions: RegionsConfig, bins: int, pyramid: Pyramid) -> RoITransform:
    """What any head can work on."""
    if regions.transform == "crop":
        return ImageCrop(regions.crop_size, regions.crop_context)
    levels = _levels(regions, pyramid)
    if regions.transform == "pool":
        return PyramidRoIPool(bins, levels)
    if regions.transform == "warp":
        return PyramidRoIWarp(bins, regions.sampling_ratio, levels, regions.reduction)
    return PyramidRoIAlign(bins, regions.sampling_ratio, regions.aligned, levels, regions.reduction)


def _width(pyramid: Pyramid, trunk: RegionTrunk | RegionNetwork | None) -> int:
    """Channels of region features as the heads see them."""
    return pyramid.channels if trunk is None else trunk.channels


def _side(bins: int, trunk: RegionTrunk | RegionNetwork | None) -> int:
    """Side of region features as the heads see them."""
    return bins if trunk is None else -(-bins // trunk.stride)
