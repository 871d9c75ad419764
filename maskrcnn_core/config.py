"""The model's typed configuration: frozen dataclasses, each field with its meaning and unit, each value checked here.

`ModelConfig` is what a checkpoint carries: architecture, conventions and inference settings, so that it loads with no
flags. What belongs to one run is in `train_config.py`, `label_config.py` and the other files of that kind. Only
`model/build.py` and `pipelines/` read a configuration; everything else takes plain arguments.
"""

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.config_checks import (
    require,
    require_between,
    require_fraction,
    require_not_negative,
    require_positive,
    require_typed,
)

# What no network needs, and no machine could build or feed: numbers beyond these are mistakes, found before memory is
# asked for.
MAX_SIDE = 16_384
_MAX_CHANNELS = 16_384
_MAX_LAYERS = 100
_MAX_RESOLUTION = 128
MAX_REGIONS = 1_000_000
_MAX_CATEGORIES = 100_000
_MAX_KEYPOINTS = 1000
_MAX_LISTED = 100
_MAX_PIXEL = 1e6

MAX_PIXELS = 178_956_970
"""Images of more are not decoded unless a run asks for them: above it Pillow, too, refuses to, as one may be made to
fill the memory (twice its `Image.MAX_IMAGE_PIXELS`)."""


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
class InputConfig:
    """How an image becomes the network's input."""

    short_side: int = 800
    """Length to which the shorter image side is resized, pixels."""
    long_side: int = 1333
    """Upper limit of the longer side after resizing, pixels; wins over short_side."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from each channel (in the order of `channels`), after division by 255 where `scale` is unit."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divides each channel after subtraction."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Channel order that the backbone expects."""
    scale: Literal["unit", "byte"] = "unit"
    """Pixel range before normalisation: unit = 0..1, byte = 0..255."""
    resize: Literal["float", "float_nearest", "antialias"] = "float"
    """float = bilinear on unrounded values, sizes rounded down (torchvision); float_nearest = the same, sizes
    rounded to the nearest (mmdetection); antialias = 8-bit bilinear with PIL's filter (detectron2)."""
    divisor: int = 32
    """Batches are padded to a multiple of this, pixels; 1 = only to the largest image (detectron2's C4 and DC5)."""

    def __post_init__(self) -> None:
        require_typed("model.input", self)
        require_between("model.input.short_side", self.short_side, 1, MAX_SIDE)
        require(
            self.short_side <= self.long_side <= MAX_SIDE,
            "model.input.long_side",
            self.long_side,
            f"at least model.input.short_side ({self.short_side}), at most {MAX_SIDE:,}",
        )
        require(all(abs(m) <= _MAX_PIXEL for m in self.mean), "model.input.mean", self.mean, "values of pixels")
        require(
            all(1 / _MAX_PIXEL <= s <= _MAX_PIXEL for s in self.std),
            "model.input.std",
            self.std,
            "numbers above 0, as of pixels",
        )
        require(
            self.divisor == 1 or (0 < self.divisor <= MAX_SIDE and self.divisor % 32 == 0),
            "model.input.divisor",
            self.divisor,
            f"a positive multiple of 32 up to {MAX_SIDE:,}, or 1 for no padding",
        )


@dataclass(frozen=True)
class BackboneConfig:
    """The trunk: an ImageNet classification network without its head."""

    name: str = "resnet50"
    """A torchvision network (resnet18 .. resnet152, resnext50_32x4d, resnext101_32x8d, wide_resnet50_2, alexnet, vgg16,
    mobilenet_v2, mobilenet_v3_large, ...); efficientnet_lite0 (weights in its package, works offline); inception_v3,
    inception_v4, inception_resnet_v2; timm:NAME for any other with feature maps."""
    pretrained: bool = True
    """Start training from the backbone's ImageNet weights (fetched once by torchvision or timm where not packaged)."""
    weights: str = ""
    """File with ImageNet weights of the backbone (a torchvision .pth) to start from instead; empty = as pretrained."""
    frozen_stages: int = 2
    """How many stages get no gradient, counted from the stem: 0 = none, 2 = stem and first stage, 5 = all."""
    norm: Literal["frozen", "sync_batch", "group"] = "frozen"
    """What becomes of the batch norms in the stages that learn: frozen = a constant affine, as in the reference
    systems; sync_batch = batch norm that learns, its statistics over the images of all workers; group = group norm,
    which needs long training, since ImageNet weights were made with batch norm. Frozen stages have frozen norms."""
    stride_in_1x1: bool = False
    """ResNet bottlenecks subsample in their first 1x1 convolution (Caffe's and detectron2's weights) instead of the
    3x3 (torchvision)."""

    def __post_init__(self) -> None:
        require_typed("model.backbone", self)
        require(bool(self.name), "model.backbone.name", self.name, "a backbone name")
        require(0 <= self.frozen_stages <= 5, "model.backbone.frozen_stages", self.frozen_stages, "0 to 5")


@dataclass(frozen=True)
class PyramidConfig:
    """What the regions are cut from: the trunk's feature maps, made alike."""

    kind: Literal["fpn", "in_network", "c4", "dc5"] = "fpn"
    """fpn = top-down pathway with lateral connections (Lin et al., CVPR 2017); in_network = the trunk's own maps, each
    projected, without the top-down pathway; c4 = one map of stride 16, the last stage runs on each region; dc5 = one
    map of stride 16, the last stage dilated."""
    channels: int = 256
    """Width of every level (fpn, in_network)."""
    norm: Literal["none", "frozen_batch", "group"] = "none"
    """Normalisation after each convolution (fpn); frozen_batch = constant affine, from imported weights."""
    levels: tuple[int, ...] = (2, 3, 4, 5)
    """Trunk stages that enter (fpn, in_network): 2 = stride 4 .. 5 = stride 32."""
    extra: Literal["max_pool", "none"] = "max_pool"
    """One more level for the RPN: the coarsest one subsampled by two (fpn, in_network)."""

    def __post_init__(self) -> None:
        require_typed("model.pyramid", self)
        require_between("model.pyramid.channels", self.channels, 1, _MAX_CHANNELS)
        require(
            len(self.levels) > 0
            and tuple(sorted(set(self.levels))) == tuple(self.levels)
            and all(2 <= level <= 5 for level in self.levels),
            "model.pyramid.levels",
            self.levels,
            "increasing numbers from 2 to 5",
        )
        require(
            self.norm == "none" or self.kind == "fpn",
            "model.pyramid.norm",
            self.norm,
            f"none where model.pyramid.kind is {self.kind}",
        )

    @property
    def num_levels(self) -> int:
        """How many maps the RPN slides over."""
        if self.kind in ("c4", "dc5"):
            return 1
        return len(self.levels) + (self.extra == "max_pool")


@dataclass(frozen=True)
class AnchorConfig:
    """The sliding windows of the RPN."""

    sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Square root of the anchor's area, input pixels: one for each pyramid level, finest first, or see every_level."""
    every_level: bool = False
    """All sizes at every position of every level (one-map models; torchvision's MobileNet models)."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width of the anchors at every position."""
    rounded: bool = False
    """Round anchor corners to whole pixels as torchvision does."""
    fitted_strides: bool = False
    """Space anchors by input size / map size, whole pixels (torchvision: P6 of a 480 wide input steps by 60, not
    64)."""

    def __post_init__(self) -> None:
        require_typed("model.anchors", self)
        require(
            0 < len(self.sizes) <= _MAX_LISTED,
            "model.anchors.sizes",
            self.sizes,
            f"at least one size, up to {_MAX_LISTED}",
        )
        require(
            all(1e-3 <= s <= _MAX_PIXEL for s in self.sizes),
            "model.anchors.sizes",
            self.sizes,
            "numbers above 0, in pixels",
        )
        require(
            0 < len(self.ratios) <= _MAX_LISTED and all(1e-3 <= r <= 1e3 for r in self.ratios),
            "model.anchors.ratios",
            self.ratios,
            f"numbers above 0 (0.001 to 1000), up to {_MAX_LISTED}",
        )


@dataclass(frozen=True)
class RPNConfig:
    """Region Proposal Network (Ren et al., NeurIPS 2015; per level as in FPN)."""

    enabled: bool = True
    """False: no RPN; proposals come from a file (data.train.proposals, jobs.label --proposals)."""
    convs: int = 1
    """3x3 convolutions before the two predictors."""
    positive_overlap: float = 0.7
    """An anchor with at least this IoU with an object is positive."""
    negative_overlap: float = 0.3
    """An anchor whose best IoU is below this is negative; between the two it is ignored."""
    batch_size: int = 256
    """Anchors sampled per image for the loss."""
    positive_fraction: float = 0.5
    """Upper limit of the positives' share among the sampled anchors."""
    pre_nms_train: int = 2000
    """Best anchors kept per level before NMS, training."""
    pre_nms_test: int = 1000
    """Best anchors kept per level before NMS, inference."""
    post_nms_train: int = 1000
    """Proposals kept per image after NMS, training."""
    post_nms_test: int = 1000
    """Proposals kept per image after NMS, inference."""
    nms_overlap: float = 0.7
    """IoU above which the weaker of two proposals of one level is dropped."""
    min_score: float = 0.0
    """Proposals less probable than this are dropped."""
    min_size: float = 1e-3
    """Proposals with a side shorter than this are dropped, input pixels."""
    box_loss: Literal["smooth_l1", "giou", "ciou"] = "smooth_l1"
    """Loss of the proposals' boxes: on deltas (smooth_l1) or on decoded boxes (giou, ciou)."""
    smooth_l1_beta: float = 1.0 / 9.0
    """Where the smooth L1 loss turns from square to linear; 0 = plain L1."""

    def __post_init__(self) -> None:
        require_typed("model.rpn", self)
        require_between("model.rpn.convs", self.convs, 1, _MAX_LAYERS)
        for name in ("batch_size", "pre_nms_train", "pre_nms_test", "post_nms_train", "post_nms_test"):
            require_between(f"model.rpn.{name}", getattr(self, name), 1, MAX_REGIONS)
        for name in ("positive_overlap", "negative_overlap", "positive_fraction", "nms_overlap", "min_score"):
            require_fraction(f"model.rpn.{name}", getattr(self, name))
        require(
            self.negative_overlap <= self.positive_overlap,
            "model.rpn.negative_overlap",
            self.negative_overlap,
            f"at most model.rpn.positive_overlap ({self.positive_overlap})",
        )
        require_not_negative("model.rpn.min_size", self.min_size)
        require_not_negative("model.rpn.smooth_l1_beta", self.smooth_l1_beta)


@dataclass(frozen=True)
class RoIConfig:
    """How regions are chosen for training and cut from the feature maps."""

    positive_overlap: float = 0.5
    """A proposal with at least this IoU with an object is positive, the others are background."""
    batch_size: int = 512
    """Regions sampled per image for the loss."""
    positive_fraction: float = 0.25
    """Upper limit of the positives' share among the sampled regions."""
    add_ground_truth: bool = True
    """Add the ground-truth boxes to the proposals while training."""
    crowd_overlap: float = 0.7
    """Anchors and proposals with more than this share of their area in a crowd region are no negatives."""
    transform: Literal["align", "pool", "warp"] = "align"
    """How a region becomes a fixed grid: align = RoIAlign (Mask R-CNN), pool = RoIPool (Fast R-CNN), warp = RoIWarp
    (bilinear on the quantised region; Dai et al., CVPR 2016)."""
    reduction: Literal["average", "max"] = "average"
    """What a bin makes of its samples (align, warp)."""
    box_resolution: int = 7
    """Output side for the box head, bins."""
    mask_resolution: int = 14
    """Output side for the mask head, bins; masks come out twice as large."""
    keypoint_resolution: int = 14
    """Output side for the keypoint head, bins; heatmaps come out four times as large."""
    sampling_ratio: int = 2
    """Samples per bin and axis (align, warp); 0 = adaptive to the region's size."""
    aligned: bool = True
    """Shift RoIAlign's samples by half a pixel (pixel centres, detectron2); false = torchvision's models."""
    canonical_size: float = 224.0
    """A region of this size (square root of area, input pixels) is cut from P`canonical_level` (FPN, Eq. 1)."""
    canonical_level: int = 4
    """Pyramid level for regions of the canonical size."""

    def __post_init__(self) -> None:
        require_typed("model.roi", self)
        for name in ("positive_overlap", "positive_fraction", "crowd_overlap"):
            require_fraction(f"model.roi.{name}", getattr(self, name))
        require_between("model.roi.batch_size", self.batch_size, 1, MAX_REGIONS)
        for name in ("box_resolution", "mask_resolution", "keypoint_resolution"):
            require_between(f"model.roi.{name}", getattr(self, name), 1, _MAX_RESOLUTION)
        require_between("model.roi.sampling_ratio", self.sampling_ratio, 0, _MAX_LISTED)
        require_between("model.roi.canonical_size", self.canonical_size, 1e-3, _MAX_PIXEL)
        require(2 <= self.canonical_level <= 5, "model.roi.canonical_level", self.canonical_level, "2 to 5")


@dataclass(frozen=True)
class BoxHeadConfig:
    """Classifier and box regressor on each region (Fast R-CNN)."""

    enabled: bool = True
    """False builds a region proposal network alone."""
    channels: int = 1024
    """Width of the fully connected layers."""
    layers: int = 2
    """Number of fully connected layers; 0 = average over the region's grid (c4)."""
    convs: int = 0
    """3x3 convolutions before the fully connected layers."""
    conv_channels: int = 256
    """Width of these convolutions."""
    conv_norm: Literal["none", "frozen_batch", "group"] = "none"
    """Normalisation after each of these convolutions."""
    class_agnostic: bool = False
    """One box per region instead of one per class."""
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """Scale of the regression targets dx, dy, dw, dh."""
    box_loss: Literal["smooth_l1", "giou", "ciou"] = "smooth_l1"
    """Loss of the boxes: on deltas (smooth_l1) or on decoded boxes (giou, ciou)."""
    smooth_l1_beta: float = 1.0 / 9.0
    """Where the smooth L1 loss turns from square to linear; 0 = plain L1."""
    min_score: float = 0.05
    """Detections below this score are dropped."""
    max_candidates: int = 10_000
    """Pairs of region and class that enter NMS, best first, per image."""
    nms: Literal["hard", "soft_linear", "soft_gaussian"] = "hard"
    """What overlapping weaker detections suffer: dropped, or their score lowered (Bodla et al., ICCV 2017)."""
    nms_overlap: float = 0.5
    """IoU above which the weaker of two detections of one class is dropped (hard) or lowered (soft_linear)."""
    soft_sigma: float = 0.5
    """Width of the Gaussian by which scores fall with the overlap (soft_gaussian)."""
    nms_per_class: bool = True
    """Only detections of the same class compete; false = all of an image."""
    max_detections: int = 100
    """Detections kept per image."""
    min_size: float = 1e-2
    """Detections with a side shorter than this are dropped, input pixels."""

    def __post_init__(self) -> None:
        require_typed("model.box_head", self)
        for name in ("channels", "conv_channels"):
            require_between(f"model.box_head.{name}", getattr(self, name), 1, _MAX_CHANNELS)
        for name in ("layers", "convs"):
            require_between(f"model.box_head.{name}", getattr(self, name), 0, _MAX_LAYERS)
        for name in ("max_candidates", "max_detections"):
            require_between(f"model.box_head.{name}", getattr(self, name), 1, MAX_REGIONS)
        require_between("model.box_head.soft_sigma", self.soft_sigma, 1e-6, _MAX_PIXEL)
        for name in ("min_score", "nms_overlap"):
            require_fraction(f"model.box_head.{name}", getattr(self, name))
        require(
            all(1e-6 <= w <= _MAX_PIXEL for w in self.delta_weights),
            "model.box_head.delta_weights",
            self.delta_weights,
            "numbers above 0",
        )
        require_not_negative("model.box_head.smooth_l1_beta", self.smooth_l1_beta)
        require_not_negative("model.box_head.min_size", self.min_size)


@dataclass(frozen=True)
class MaskHeadConfig:
    """Fully convolutional mask predictor on the refined boxes (Mask R-CNN)."""

    enabled: bool = True
    """False builds a box detector (Faster R-CNN)."""
    kind: Literal["fcn", "mlp"] = "fcn"
    """fcn = convolutions and a deconvolution; mlp = two fully connected layers (the paper's comparison, table 2e)."""
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    """sigmoid = each class its own mask; softmax = classes compete for each pixel (table 2b)."""
    regions: Literal["refined", "proposals"] = "refined"
    """Where masks are predicted: on the refined boxes after NMS, or on the proposals that they came from."""
    channels: int = 256
    """Width of the convolutions."""
    layers: int = 4
    """3x3 convolutions before the deconvolution."""
    class_agnostic: bool = False
    """One mask per region instead of one per class."""
    paste: Literal["exact", "bicubic", "torchvision"] = "exact"
    """Resampling of the soft mask into the image: exact = bilinear at exact pixel centres (detectron2); bicubic = the
    same places, smoother; torchvision = its rounded boxes, so that its checkpoints give its own masks."""
    threshold: float = 0.5
    """A pixel is object where its resampled probability reaches this."""
    soft_targets: bool = True
    """Train on the fractional coverage of each target cell (torchvision); false = round it at one half."""

    def __post_init__(self) -> None:
        require_typed("model.mask_head", self)
        require_between("model.mask_head.channels", self.channels, 1, _MAX_CHANNELS)
        require_between("model.mask_head.layers", self.layers, 0, _MAX_LAYERS)
        require(0.0 < self.threshold < 1.0, "model.mask_head.threshold", self.threshold, "a number between 0 and 1")


COCO_KEYPOINTS = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)


@dataclass(frozen=True)
class KeypointHeadConfig:
    """Keypoint predictor on the refined boxes: one heatmap for each keypoint (Mask R-CNN, section 5)."""

    enabled: bool = False
    """True adds keypoints."""
    channels: int = 512
    """Width of the convolutions."""
    layers: int = 8
    """3x3 convolutions before the deconvolution."""
    names: tuple[str, ...] = COCO_KEYPOINTS
    """Keypoints in the order of the annotations; left_X and right_X change places in mirrored images."""
    categories: tuple[str, ...] = ("person",)
    """Names of the categories that have keypoints; detections of others have none."""
    decode: Literal["exact", "torchvision"] = "exact"
    """Where in its cell a heatmap's maximum lies: exact = detectron2's half-pixel rule; torchvision = its own, so that
    its checkpoints give its own keypoints."""
    loss_weight: float = 1.0
    """Factor of the keypoint loss."""

    def __post_init__(self) -> None:
        require_typed("model.keypoint_head", self)
        require_between("model.keypoint_head.channels", self.channels, 1, _MAX_CHANNELS)
        require_between("model.keypoint_head.layers", self.layers, 1, _MAX_LAYERS)
        require_positive("model.keypoint_head.loss_weight", self.loss_weight)
        require(
            0 < len(self.names) <= _MAX_KEYPOINTS and len(set(self.names)) == len(self.names),
            "model.keypoint_head.names",
            self.names,
            f"unique names, at least one, up to {_MAX_KEYPOINTS}",
        )
        require(
            len(self.categories) > 0 and len(set(self.categories)) == len(self.categories),
            "model.keypoint_head.categories",
            self.categories,
            "unique names, at least one",
        )


@dataclass(frozen=True)
class ModelConfig:
    """The detector: trunk, regions, RoI transform, heads, and the conventions of its weights."""

    input: InputConfig = field(default_factory=InputConfig)
    """Image size and normalisation."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Trunk network."""
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    """Feature maps that regions are cut from."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """Anchor boxes."""
    rpn: RPNConfig = field(default_factory=RPNConfig)
    """Region proposals."""
    roi: RoIConfig = field(default_factory=RoIConfig)
    """Region sampling and RoI transform."""
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
            len(self.categories) <= _MAX_CATEGORIES,
            "model.categories",
            f"{len(self.categories):,}",
            f"at most {_MAX_CATEGORIES:,}",
        )
        ids = [category.id for category in self.categories]
        require(len(set(ids)) == len(ids), "model.categories", ids, "unique category ids")
        levels = self.pyramid.num_levels
        require(
            self.anchors.every_level or len(self.anchors.sizes) == levels,
            "model.anchors.sizes",
            self.anchors.sizes,
            f"{levels} sizes, one for each pyramid level, or model.anchors.every_level true",
        )
        require(
            self.rpn.enabled or self.box_head.enabled,
            "model.rpn.enabled",
            self.rpn.enabled,
            "true where model.box_head.enabled is false: nothing would be left to learn",
        )
        for name, head in (("mask_head", self.mask_head), ("keypoint_head", self.keypoint_head)):
            require(
                self.box_head.enabled or not head.enabled,
                f"model.{name}.enabled",
                head.enabled,
                "false where model.box_head.enabled is false: masks and keypoints are predicted on its boxes",
            )
        require(
            self.box_head.layers > 0 or self.box_head.convs == 0,
            "model.box_head.convs",
            self.box_head.convs,
            "0 where model.box_head.layers is 0",
        )
