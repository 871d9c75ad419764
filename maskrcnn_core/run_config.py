"""The typed configuration of a run: data, optimisation, labelling, scoring, cluster, and one class for each job."""

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.config import ModelConfig
from maskrcnn_core.config_checks import require, require_fraction, require_not_negative, require_positive


@dataclass(frozen=True)
class DatasetConfig:
    """Images with COCO annotations."""

    images: str = ""
    """Folder that the file names in the annotations are relative to."""
    annotations: str = ""
    """COCO instances JSON file."""
    proposals: str = ""
    """Proposals that jobs.label --label.record proposals wrote; needed where model.rpn.enabled is false."""


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
        require_not_negative("data.workers", self.workers)
        require_positive("data.max_pixels", self.max_pixels)


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
            require_positive(f"train.{name}", getattr(self, name))
        for name in ("threads_per_worker", "weight_decay", "warmup_steps", "clip_norm", "mask_crop", "validate_every"):
            require_not_negative(f"train.{name}", getattr(self, name))
        require_not_negative("train.max_failures", self.max_failures)
        for name in ("momentum", "warmup_factor", "flip_probability"):
            require_fraction(f"train.{name}", getattr(self, name))
        require(0.0 < self.decay_factor <= 1.0, "train.decay_factor", self.decay_factor, "a number above 0, at most 1")
        require(
            self.batch_size % self.num_workers == 0,
            "train.batch_size",
            self.batch_size,
            f"a multiple of train.num_workers ({self.num_workers})",
        )
        require(all(side > 0 for side in self.short_sides), "train.short_sides", self.short_sides, "numbers above 0")
        require(
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
    """Drop detections (or proposals) below this score; null = as in the checkpoint."""
    max_detections: int | None = None
    """Detections (or proposals) kept per image; null = as in the checkpoint."""
    record: Literal["detections", "proposals"] = "detections"
    """What a row holds: detections, or the RPN's proposals to train and detect from."""
    test_short_sides: tuple[int, ...] = ()
    """Detect at each of these short sides and merge (image pyramid), pixels; empty = only the checkpoint's own."""
    test_flip: bool = False
    """Detect on the mirrored image too and merge."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network."""
    rows_per_file: int = 1000
    """Images per Parquet file, about."""
    max_failed_fraction: float = 1.0
    """Exit with 1 if a larger share of images failed."""

    def __post_init__(self) -> None:
        for name in ("batch_pixels", "max_pixels", "rows_per_file"):
            require_positive(f"label.{name}", getattr(self, name))
        for name in ("num_workers", "threads_per_worker"):
            require_not_negative(f"label.{name}", getattr(self, name))
        require_fraction("label.max_failed_fraction", self.max_failed_fraction)
        if self.min_score is not None:
            require_fraction("label.min_score", self.min_score)
        if self.max_detections is not None:
            require_positive("label.max_detections", self.max_detections)
        require(
            all(side > 0 for side in self.test_short_sides),
            "label.test_short_sides",
            self.test_short_sides,
            "numbers above 0",
        )


@dataclass(frozen=True)
class ClusterConfig:
    """The Ray cluster that a job uses."""

    address: str | None = None
    """Address of a running cluster; null = RAY_ADDRESS, or one started on this machine for the job."""
    num_cpus: int = 0
    """Logical CPUs of a cluster started here; 0 = the machine's cores, at least 4."""

    def __post_init__(self) -> None:
        require_not_negative("cluster.num_cpus", self.num_cpus)


@dataclass(frozen=True)
class EvaluateConfig:
    """Scoring of labels."""

    max_detections: int = 100
    """Best detections of an image and category that count (COCO: 100)."""
    keypoint_sigmas: tuple[float, ...] = ()
    """Spread of each keypoint's annotation as a share of the object's scale; empty = COCO's, for its 17 keypoints."""
    engine: Literal["hotcoco", "pycocotools"] = "hotcoco"
    """hotcoco = compiled, bit-equal to pycocotools (tests hold it so); pycocotools = the reference itself."""

    def __post_init__(self) -> None:
        require(self.max_detections >= 10, "evaluate.max_detections", self.max_detections, "at least 10")
        require(
            all(sigma > 0 for sigma in self.keypoint_sigmas),
            "evaluate.keypoint_sigmas",
            self.keypoint_sigmas,
            "numbers above 0",
        )


@dataclass(frozen=True)
class TrainRun:
    """Train a Mask R-CNN on COCO-format data."""

    output: str
    """Folder of the run (local or s3://): checkpoints, TensorBoard logs, configuration."""
    init: str | None = None
    """Checkpoint folder to start from: weights whose names and shapes fit are taken, the others start afresh. Of
    several, separated by commas, the first that has a weight gives it."""
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
    proposals: str | None = None
    """Proposals that an earlier run wrote with --label.record proposals; used instead of the checkpoint's RPN."""
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
    """.pth or .pkl file of torchvision (Mask, Keypoint and Faster R-CNN), detectron2 (C4, DC5, FPN; masks, keypoints,
    boxes, RPN) or mmdetection (Mask and Faster R-CNN with FPN)."""
    output: str
    """Checkpoint folder to write."""
    annotations: str | None = None
    """COCO json whose categories, in order of id, name labels 1, 2, ...; null = COCO's where there are 91 outputs."""
    source_config: str | None = None
    """The source framework's own name of the model's configuration, where the file alone can't tell
    (COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x, COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x, ...)."""
    norm_eps: float = 0.0
    """Epsilon of the source's batch norms; 0 = the source framework's own (torchvision's released weights: none)."""

    def __post_init__(self) -> None:
        require_not_negative("norm_eps", self.norm_eps)


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
            require_positive(name, getattr(self, name))
        require_not_negative("threads", self.threads)


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
            require_positive(name, getattr(self, name))
