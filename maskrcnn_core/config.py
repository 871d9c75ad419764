"""The one typed configuration: frozen dataclasses, each field with its meaning and unit, each value checked here.

`ModelConfig` is what a checkpoint carries: architecture, conventions and inference settings, so that it loads with no
flags. `DataConfig`, `TrainConfig`, `LabelConfig`, `EvaluateConfig` and `ClusterConfig` belong to one run. Only
`model/build.py` and `pipelines/` read a configuration; everything else takes plain arguments.
"""

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.errors import ConfigError


def _require(holds: bool, name: str, got: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{name}: got {got!r}, expected {expected}")


def _require_fraction(name: str, value: float) -> None:
    _require(0.0 <= value <= 1.0, name, value, "a number from 0 to 1")


def _require_positive(name: str, value: float) -> None:
    _require(value > 0, name, value, "a number above 0")


def _require_not_negative(name: str, value: float) -> None:
    _require(value >= 0, name, value, "0 or more")


@dataclass(frozen=True)
class Category:
    """One class of objects, as the COCO format names it."""

    id: int
    """COCO category id, as in the annotation file and in the label records."""
    name: str
    """Category name."""


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
    divisor: int = 32
    """Batches are padded to a multiple of this, pixels; at least the coarsest backbone stride."""

    def __post_init__(self) -> None:
        _require_positive("model.input.short_side", self.short_side)
        _require(
            self.long_side >= self.short_side,
            "model.input.long_side",
            self.long_side,
            f"at least model.input.short_side ({self.short_side})",
        )
        _require(all(s > 0 for s in self.std), "model.input.std", self.std, "numbers above 0")
        _require(
            self.divisor > 0 and self.divisor % 32 == 0,
            "model.input.divisor",
            self.divisor,
            "a positive multiple of 32",
        )


@dataclass(frozen=True)
class BackboneConfig:
    """The trunk: an ImageNet classification network without its head, batch norm frozen to an affine."""

    name: str = "resnet50"
    """resnet18, resnet34, resnet50, resnet101, resnext50_32x4d, resnext101_32x8d (torchvision);
    efficientnet_lite0 (weights in its package, works offline); timm:NAME for any other with feature maps."""
    pretrained: bool = True
    """Start training from the backbone's ImageNet weights (fetched once by torchvision or timm where not packaged)."""
    frozen_stages: int = 2
    """How many stages get no gradient, counted from the stem: 0 = none, 2 = stem and first stage, 5 = all."""

    def __post_init__(self) -> None:
        _require(bool(self.name), "model.backbone.name", self.name, "a backbone name")
        _require(0 <= self.frozen_stages <= 5, "model.backbone.frozen_stages", self.frozen_stages, "0 to 5")


@dataclass(frozen=True)
class FPNConfig:
    """Feature Pyramid Network, P2 to P6 (Lin et al., CVPR 2017)."""

    channels: int = 256
    """Width of every pyramid level."""

    def __post_init__(self) -> None:
        _require_positive("model.fpn.channels", self.channels)


@dataclass(frozen=True)
class AnchorConfig:
    """The sliding windows of the RPN."""

    sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Square root of the anchor's area on each pyramid level P2 .. P6, input pixels."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width of the anchors at every position."""
    rounded: bool = False
    """Round anchor corners to whole pixels as torchvision does."""
    fitted_strides: bool = False
    """Space anchors by input size / map size, whole pixels (torchvision: P6 of a 480 wide input steps by 60, not
    64)."""

    def __post_init__(self) -> None:
        _require(len(self.sizes) == 5, "model.anchors.sizes", self.sizes, "5 sizes, one for each of P2 to P6")
        _require(all(s > 0 for s in self.sizes), "model.anchors.sizes", self.sizes, "numbers above 0")
        _require(
            len(self.ratios) > 0 and all(r > 0 for r in self.ratios),
            "model.anchors.ratios",
            self.ratios,
            "numbers above 0",
        )


@dataclass(frozen=True)
class RPNConfig:
    """Region Proposal Network (Ren et al., NeurIPS 2015; per level as in FPN)."""

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
    min_size: float = 1e-3
    """Proposals with a side shorter than this are dropped, input pixels."""
    smooth_l1_beta: float = 1.0 / 9.0
    """Where the box loss turns from square to linear; 0 = plain L1."""

    def __post_init__(self) -> None:
        for name in ("convs", "batch_size", "pre_nms_train", "pre_nms_test", "post_nms_train", "post_nms_test"):
            _require_positive(f"model.rpn.{name}", getattr(self, name))
        for name in ("positive_overlap", "negative_overlap", "positive_fraction", "nms_overlap"):
            _require_fraction(f"model.rpn.{name}", getattr(self, name))
        _require(
            self.negative_overlap <= self.positive_overlap,
            "model.rpn.negative_overlap",
            self.negative_overlap,
            f"at most model.rpn.positive_overlap ({self.positive_overlap})",
        )
        _require_not_negative("model.rpn.min_size", self.min_size)
        _require_not_negative("model.rpn.smooth_l1_beta", self.smooth_l1_beta)


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
    box_resolution: int = 7
    """RoIAlign output side for the box head, bins."""
    mask_resolution: int = 14
    """RoIAlign output side for the mask head, bins; masks come out twice as large."""
    sampling_ratio: int = 2
    """RoIAlign samples per bin and axis; 0 = adaptive to the region's size."""
    aligned: bool = True
    """Shift RoIAlign's samples by half a pixel (pixel centres, detectron2); false = torchvision's models."""
    canonical_size: float = 224.0
    """A region of this size (square root of area, input pixels) is cut from P`canonical_level` (FPN, Eq. 1)."""
    canonical_level: int = 4
    """Pyramid level for regions of the canonical size."""

    def __post_init__(self) -> None:
        for name in ("positive_overlap", "positive_fraction", "crowd_overlap"):
            _require_fraction(f"model.roi.{name}", getattr(self, name))
        for name in ("batch_size", "box_resolution", "mask_resolution", "canonical_size"):
            _require_positive(f"model.roi.{name}", getattr(self, name))
        _require_not_negative("model.roi.sampling_ratio", self.sampling_ratio)
        _require(2 <= self.canonical_level <= 5, "model.roi.canonical_level", self.canonical_level, "2 to 5")


@dataclass(frozen=True)
class BoxHeadConfig:
    """Classifier and box regressor on each region (Fast R-CNN)."""

    channels: int = 1024
    """Width of the fully connected layers."""
    layers: int = 2
    """Number of fully connected layers."""
    class_agnostic: bool = False
    """One box per region instead of one per class."""
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    """Scale of the regression targets dx, dy, dw, dh."""
    smooth_l1_beta: float = 1.0 / 9.0
    """Where the box loss turns from square to linear; 0 = plain L1."""
    min_score: float = 0.05
    """Detections below this score are dropped."""
    max_candidates: int = 10_000
    """Pairs of region and class that enter NMS, best first, per image."""
    nms_overlap: float = 0.5
    """IoU above which the weaker of two detections of one class is dropped."""
    max_detections: int = 100
    """Detections kept per image."""
    min_size: float = 1e-2
    """Detections with a side shorter than this are dropped, input pixels."""

    def __post_init__(self) -> None:
        for name in ("channels", "layers", "max_candidates", "max_detections"):
            _require_positive(f"model.box_head.{name}", getattr(self, name))
        for name in ("min_score", "nms_overlap"):
            _require_fraction(f"model.box_head.{name}", getattr(self, name))
        _require(
            all(w > 0 for w in self.delta_weights),
            "model.box_head.delta_weights",
            self.delta_weights,
            "numbers above 0",
        )
        _require_not_negative("model.box_head.smooth_l1_beta", self.smooth_l1_beta)
        _require_not_negative("model.box_head.min_size", self.min_size)


@dataclass(frozen=True)
class MaskHeadConfig:
    """Fully convolutional mask predictor on the refined boxes (Mask R-CNN)."""

    enabled: bool = True
    """False builds a box detector (Faster R-CNN)."""
    channels: int = 256
    """Width of the convolutions."""
    layers: int = 4
    """3x3 convolutions before the deconvolution."""
    class_agnostic: bool = False
    """One mask per region instead of one per class."""
    paste: Literal["exact", "torchvision"] = "exact"
    """Resampling of the soft mask into the image: exact = bilinear at exact pixel centres (detectron2);
    torchvision = its rounded boxes, so that its checkpoints give its own masks."""
    threshold: float = 0.5
    """A pixel is object where its resampled probability reaches this."""
    soft_targets: bool = True
    """Train on the fractional coverage of each target cell (torchvision); false = round it at one half."""

    def __post_init__(self) -> None:
        _require_positive("model.mask_head.channels", self.channels)
        _require_not_negative("model.mask_head.layers", self.layers)
        _require(0.0 < self.threshold < 1.0, "model.mask_head.threshold", self.threshold, "a number between 0 and 1")


@dataclass(frozen=True)
class ModelConfig:
    """The detector: trunk, regions, RoI transform, heads, and the conventions of its weights."""

    input: InputConfig = field(default_factory=InputConfig)
    """Image size and normalisation."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Trunk network."""
    fpn: FPNConfig = field(default_factory=FPNConfig)
    """Feature pyramid."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """Anchor boxes."""
    rpn: RPNConfig = field(default_factory=RPNConfig)
    """Region proposals."""
    roi: RoIConfig = field(default_factory=RoIConfig)
    """Region sampling and RoIAlign."""
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    """Classification and box regression."""
    mask_head: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    """Masks."""
    categories: tuple[Category, ...] = ()
    """Classes in label order 0 .. K-1. Training fills it from the annotation file."""

    def __post_init__(self) -> None:
        ids = [category.id for category in self.categories]
        _require(len(set(ids)) == len(ids), "model.categories", ids, "unique category ids")


@dataclass(frozen=True)
class DatasetConfig:
    """Images with COCO annotations."""

    images: str = ""
    """Folder that the file names in the annotations are relative to."""
    annotations: str = ""
    """COCO instances JSON file."""


@dataclass(frozen=True)
class DataConfig:
    """Training and validation data."""

    train: DatasetConfig = field(default_factory=DatasetConfig)
    """What to learn from."""
    val: DatasetConfig = field(default_factory=DatasetConfig)
    """What to choose the best checkpoint by; empty = keep the last."""
    workers: int = 0
    """Loader processes per training worker; 0 = one background thread."""
    max_pixels: int = 178_956_970
    """Larger images are refused, pixels."""

    def __post_init__(self) -> None:
        _require_not_negative("data.workers", self.workers)
        _require_positive("data.max_pixels", self.max_pixels)


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation. Defaults are the 1x schedule of the reference systems (16 images a step)."""

    steps: int = 90_000
    """Optimisation steps."""
    batch_size: int = 16
    """Images per step over all workers; a multiple of train.num_workers."""
    num_workers: int = 1
    """Training processes (Ray Train workers)."""
    use_gpu: bool = False
    """One GPU for each worker (NCCL) instead of CPU (gloo)."""
    threads_per_worker: int = 0
    """CPU threads of each worker; 0 = the machine's cores / workers on it."""
    learning_rate: float = 0.02
    """Peak learning rate for the whole batch."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 1e-4
    """L2 penalty on weights (not on biases and norms)."""
    warmup_steps: int = 1000
    """Steps of linear warm-up."""
    warmup_factor: float = 0.001
    """Learning rate at step 0, as a share of the peak."""
    schedule: Literal["step", "cosine"] = "step"
    """After warm-up: step = multiply by decay_factor at decay_steps; cosine = to zero at the last step."""
    decay_steps: tuple[int, ...] = (60_000, 80_000)
    """Steps at which the learning rate falls (schedule: step)."""
    decay_factor: float = 0.1
    """What the learning rate is multiplied by at each of decay_steps."""
    clip_norm: float = 0.0
    """Upper limit of the gradient norm; 0 = none."""
    flip_probability: float = 0.5
    """Share of images mirrored left to right."""
    short_sides: tuple[int, ...] = ()
    """Short sides to choose from at random for each image, pixels; empty = model.input.short_side."""
    mask_crop: int = 112
    """Side of the grid on which each ground-truth mask is kept, cropped to its box; 0 = input resolution."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass (bfloat16 by autocast)."""
    seed: int = 0
    """Seed of weights, sampling order and augmentation."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step always makes one."""
    validate_every: int = 5000
    """Steps between validations (COCO AP on data.val); the last step always validates; 0 = only the last."""
    log_every: int = 20
    """Steps between log entries (TensorBoard, progress)."""
    max_failures: int = 3
    """How often lost workers or machines are replaced, each time from the last checkpoint."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "num_workers", "learning_rate", "checkpoint_every", "log_every"):
            _require_positive(f"train.{name}", getattr(self, name))
        for name in ("threads_per_worker", "weight_decay", "warmup_steps", "clip_norm", "mask_crop", "validate_every"):
            _require_not_negative(f"train.{name}", getattr(self, name))
        _require_not_negative("train.max_failures", self.max_failures)
        for name in ("momentum", "warmup_factor", "flip_probability"):
            _require_fraction(f"train.{name}", getattr(self, name))
        _require(0.0 < self.decay_factor <= 1.0, "train.decay_factor", self.decay_factor, "a number above 0, at most 1")
        _require(
            self.batch_size % self.num_workers == 0,
            "train.batch_size",
            self.batch_size,
            f"a multiple of train.num_workers ({self.num_workers})",
        )
        _require(all(side > 0 for side in self.short_sides), "train.short_sides", self.short_sides, "numbers above 0")
        _require(
            tuple(sorted(self.decay_steps)) == tuple(self.decay_steps),
            "train.decay_steps",
            self.decay_steps,
            "increasing steps",
        )


@dataclass(frozen=True)
class LabelConfig:
    """Offline inference."""

    num_workers: int = 0
    """Detector processes (Ray actors); 0 = chosen from the cluster."""
    use_gpu: bool = False
    """One GPU for each worker."""
    threads_per_worker: int = 0
    """CPU threads of each worker; 0 = chosen from the cluster's cores and workers."""
    batch_pixels: int = 2_000_000
    """Upper limit of padded input pixels in one batch; one image is always taken."""
    max_pixels: int = 178_956_970
    """Larger images become rows with status too_large, pixels."""
    exif_orientation: Literal["auto", "apply", "ignore"] = "auto"
    """Turn images by their EXIF tag; auto = ignore where the source is COCO json (its ground truth is unturned)."""
    min_score: float | None = None
    """Drop detections below this score; null = as in the checkpoint."""
    max_detections: int | None = None
    """Detections kept per image; null = as in the checkpoint."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network."""
    rows_per_file: int = 1000
    """Images per Parquet file, about."""
    max_failed_fraction: float = 1.0
    """Exit with 1 if a larger share of images failed."""

    def __post_init__(self) -> None:
        for name in ("batch_pixels", "max_pixels", "rows_per_file"):
            _require_positive(f"label.{name}", getattr(self, name))
        for name in ("num_workers", "threads_per_worker"):
            _require_not_negative(f"label.{name}", getattr(self, name))
        _require_fraction("label.max_failed_fraction", self.max_failed_fraction)
        if self.min_score is not None:
            _require_fraction("label.min_score", self.min_score)
        if self.max_detections is not None:
            _require_positive("label.max_detections", self.max_detections)


@dataclass(frozen=True)
class ClusterConfig:
    """The Ray cluster that a job uses."""

    address: str | None = None
    """Address of a running cluster; null = RAY_ADDRESS, or one started on this machine for the job."""
    num_cpus: int = 0
    """Logical CPUs of a cluster started here; 0 = the machine's cores, at least 4."""

    def __post_init__(self) -> None:
        _require_not_negative("cluster.num_cpus", self.num_cpus)


@dataclass(frozen=True)
class EvaluateConfig:
    """Scoring of labels."""

    max_detections: int = 100
    """Best detections of an image and category that count (COCO: 100)."""
    engine: Literal["hotcoco", "pycocotools"] = "hotcoco"
    """hotcoco = compiled, bit-equal to pycocotools (tests hold it so); pycocotools = the reference itself."""

    def __post_init__(self) -> None:
        _require(self.max_detections >= 10, "evaluate.max_detections", self.max_detections, "at least 10")


@dataclass(frozen=True)
class TrainRun:
    """Train a Mask R-CNN on COCO-format data."""

    output: str
    """Folder of the run (local or s3://): checkpoints, TensorBoard logs, configuration."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Detector."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data sets."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray cluster."""


@dataclass(frozen=True)
class LabelRun:
    """Detect objects in an image collection and write one Parquet row per image."""

    checkpoint: str
    """Checkpoint folder."""
    images: str
    """Folder, glob, COCO json or manifest .parquet."""
    output: str
    """Folder of the run; rows go to OUTPUT/labels/*.parquet."""
    image_root: str | None = None
    """Folder that the file names of a COCO json are relative to; null = looked for beside the json."""
    label: LabelConfig = field(default_factory=LabelConfig)
    """Inference."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray cluster."""


@dataclass(frozen=True)
class EvaluateRun:
    """Score labels against COCO annotations."""

    labels: str
    """Folder that jobs.label wrote, or its labels/ folder, or one .parquet file."""
    annotations: str
    """COCO instances JSON file."""
    output: str | None = None
    """JSON file for the numbers; null = print only."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Scoring."""


@dataclass(frozen=True)
class ConvertRun:
    """Turn another framework's checkpoint file into a checkpoint folder with that framework's conventions."""

    source: str
    """torchvision .pth file: the state dict of maskrcnn_resnet50_fpn (or another ResNet-FPN Mask R-CNN)."""
    output: str
    """Checkpoint folder to write."""
    annotations: str | None = None
    """COCO json whose categories, in order of id, name labels 1, 2, ...; null = COCO's where there are 91 outputs."""
    norm_eps: float = 0.0
    """Epsilon of the source's batch norms: 0 for released COCO weights, 1e-5 for models trained otherwise."""

    def __post_init__(self) -> None:
        _require_not_negative("norm_eps", self.norm_eps)


@dataclass(frozen=True)
class BenchmarkRun:
    """Measure speed on this machine."""

    images: str | None = None
    """Folder of images; null = generated ones."""
    num_images: int = 8
    """How many of them."""
    rounds: int = 3
    """Interleaved rounds; the median counts."""
    short_side: int = 800
    """Short side of the network's input, pixels; the long side is limited to 5/3 of it."""
    max_detections: int = 100
    """Detections of an image; the random weights always find that many."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of our side; the peer computes in float32."""
    threads: int = 0
    """CPU threads of both sides; 0 = the machine's cores."""

    def __post_init__(self) -> None:
        for name in ("num_images", "rounds", "short_side", "max_detections"):
            _require_positive(name, getattr(self, name))
        _require_not_negative("threads", self.threads)


@dataclass(frozen=True)
class DemoRun:
    """Generate data, train, label, score and draw: the whole system in some minutes on a laptop."""

    output: str = "demo"
    """Folder for everything that is made; what is already there is used again."""
    train_images: int = 900
    """Generated pictures to learn from."""
    val_images: int = 60
    """Generated pictures, held out, to score on."""
    seed: int = 0
    """Seed of the pictures."""

    def __post_init__(self) -> None:
        for name in ("train_images", "val_images"):
            _require_positive(name, getattr(self, name))
