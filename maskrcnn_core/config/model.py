"""The model's typed configuration, a file for each part of the formula: frozen dataclasses, each field with its meaning
and unit, each value checked there.

`ModelConfig` is what a checkpoint carries: architecture, conventions and inference settings, so that it loads with no
flags. What belongs to one run is in `config.py` of its pipeline. Networks take plain arguments; data, inference and
importers may take a section; only `model/build.py`, `build_dense.py`, `build_regions.py` and `pipelines/` see the whole
tree.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from maskrcnn_core.config.checks import require, require_typed
from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_detection import DenseDetectionConfig
from maskrcnn_core.config.heads import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.limits import MAX_CATEGORIES
from maskrcnn_core.config.pyramid import PyramidConfig
from maskrcnn_core.config.regions import RegionsConfig
from maskrcnn_core.config.trunk import BackboneConfig


@dataclass(frozen=True)
class Category:
    """One class of objects, as the COCO format names it."""

    id: int
    """COCO category id, as in the annotation file and in the label records."""
    name: str
    """Category name."""

    def __post_init__(self) -> None:
        require_typed("model.categories", self)


@dataclass(frozen=True)
class ModelConfig:
    """The detector: trunk, pyramid, dense stage, region stage with its heads, and the conventions of its weights."""

    input: InputConfig = field(default_factory=InputConfig)
    """Image size and normalisation."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Trunk network."""
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    """Feature maps that everything else is computed from."""
    dense: DenseConfig = field(default_factory=DenseConfig)
    """The dense stage: anchors, and what is predicted for each."""
    regions: RegionsConfig = field(default_factory=RegionsConfig)
    """The region stage: which regions are learnt from, and how they are cut out."""
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    """Classification and box regression."""
    mask_head: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    """Masks."""
    keypoint_head: KeypointHeadConfig = field(default_factory=KeypointHeadConfig)
    """Keypoints."""
    categories: tuple[Category, ...] = ()
    """Classes in label order 0 .. K-1. Training fills it from the annotation file."""

    def __post_init__(self) -> None:
        require_typed("model", self)
        require(
            len(self.categories) <= MAX_CATEGORIES,
            "model.categories",
            f"{len(self.categories):,}",
            f"at most {MAX_CATEGORIES:,}",
        )
        ids = [category.id for category in self.categories]
        require(len(set(ids)) == len(ids), "model.categories", ids, "unique category ids")
        self._check_stages()
        self._check_regions()
        require(
            self.box_head.layers > 0 or self.box_head.convs == 0,
            "model.box_head.convs",
            self.box_head.convs,
            "0 where model.box_head.layers is 0",
        )

    def _check_stages(self) -> None:
        """Stages that do not go together."""
        levels, anchors = self.pyramid.num_levels, self.dense.anchors
        require(
            anchors.num_levels in (None, levels) or not self.dense.enabled,
            "model.dense.anchors.sizes",
            anchors.sizes,
            f"{levels} sizes, one for each pyramid level, or model.dense.anchors.every_level true",
        )
        require(
            levels == 1 or self.dense.loss.kind not in ("cells", "grid", "box_masks"),
            "model.pyramid.kind",
            self.pyramid.kind,
            f"one of a single level (last, passthrough) where model.dense.loss.kind is {self.dense.loss.kind}",
        )
        require(
            self.dense.enabled or self.box_head.enabled,
            "model.dense.enabled",
            self.dense.enabled,
            "true where model.box_head.enabled is false: nothing would be left to learn",
        )
        require(
            self.dense.finds == "proposals" or not self.box_head.enabled,
            "model.box_head.enabled",
            self.box_head.enabled,
            "false where model.dense.finds is detections: the boxes are the dense stage's",
        )
        for name, head in (("mask_head", self.mask_head), ("keypoint_head", self.keypoint_head)):
            require(
                self.finds == "detections" or not head.enabled,
                f"model.{name}.enabled",
                head.enabled,
                "false where model.box_head.enabled is false and model.dense.finds is proposals: masks and keypoints "
                "are predicted on the boxes of detections",
            )
        require(
            self.box_head.enabled or not self.mask_head.enabled or self.mask_head.regions == "refined",
            "model.mask_head.regions",
            self.mask_head.regions,
            "refined where model.box_head.enabled is false: detections come from no proposals",
        )

    def _check_regions(self) -> None:
        """RoI transforms that do not go with the other parts."""
        transform, pixels = self.regions.transform, self.pyramid.kind == "pixels"
        require(
            not pixels or (transform == "crop" and not self.dense.enabled),
            "model.pyramid.kind",
            self.pyramid.kind,
            "another where model.regions.transform is not crop, or model.dense.enabled is true: both need maps",
        )
        require(
            transform != "crop" or self.dense.enabled or pixels,
            "model.pyramid.kind",
            self.pyramid.kind,
            "pixels where model.regions.transform is crop and model.dense.enabled is false: nothing would use a map",
        )
        require(
            transform != "crop" or self.pyramid.kind != "c4",
            "model.pyramid.kind",
            self.pyramid.kind,
            "another where model.regions.transform is crop, whose regions have a network of their own",
        )
        require(
            not self.pyramid.image_scales or (transform == "spatial_pyramid" and not self.dense.enabled),
            "model.pyramid.image_scales",
            self.pyramid.image_scales,
            "none where model.regions.transform is not spatial_pyramid, or model.dense.enabled is true",
        )
        for name, head in (("mask_head", self.mask_head), ("keypoint_head", self.keypoint_head)):
            require(
                not head.enabled or not self.pyramid.image_scales,
                f"model.{name}.enabled",
                head.enabled,
                "false where model.pyramid.image_scales are given",
            )
            require(
                not head.enabled or transform != "crop" or self.regions.crop_context == 0,
                "model.regions.crop_context",
                self.regions.crop_context,
                f"0 where model.{name}.enabled is true, which draws on the region itself",
            )
        require(
            self.regions.sampling == "random" or self.box_head.enabled,
            "model.regions.sampling",
            self.regions.sampling,
            "random where model.box_head.enabled is false, whose losses say what is hard",
        )
        require(
            transform != "spatial_pyramid" or self.box_head.convs == 0,
            "model.box_head.convs",
            self.box_head.convs,
            "0 where model.regions.transform is spatial_pyramid, whose parts are no grid",
        )

    @property
    def finds(self) -> Literal["proposals", "detections"]:
        """What the last stage gives: regions without a class, or objects."""
        return "detections" if self.box_head.enabled else self.dense.finds

    @property
    def detection(self) -> BoxHeadConfig | DenseDetectionConfig:
        """The section that says which boxes become detections: of the stage that finds them."""
        return self.box_head if self.box_head.enabled else self.dense.detection

    def with_detection(self, *, min_score: float | None = None, max_detections: int | None = None) -> "ModelConfig":
        """The same model with other numbers of detections; None keeps what it has."""
        other = {"min_score": min_score, "max_detections": max_detections}
        given: dict[str, Any] = {name: value for name, value in other.items() if value is not None}
        if self.box_head.enabled:
            return replace(self, box_head=replace(self.box_head, **given))
        return replace(self, dense=replace(self.dense, detection=replace(self.dense.detection, **given)))
