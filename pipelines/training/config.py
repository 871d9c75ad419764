"""The typed configuration of a training run: optimisation, and the run as a whole."""

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.config.checks import (
    IN_PLACE_OF,
    require,
    require_between,
    require_fraction,
    require_not_negative,
    require_positive,
    require_typed,
)
from maskrcnn_core.config.limits import MAX_SIDE
from maskrcnn_core.config.model import ModelConfig
from pipelines.cluster.config import ClusterConfig
from pipelines.storage.config import StorageConfig
from pipelines.training.data_config import AugmentConfig, DataConfig

# Numbers beyond these are mistakes that a machine would only find when it is out of memory.
_MAX_WORKERS = 10_000
_MAX_THREADS = 4096
_MAX_BATCH = 1_000_000
_MAX_STEPS = 1_000_000_000
_MAX_FACTOR = 1e6
_MAX_PICTURES = 1000
_MAX_GROUPS = 1000
_MAX_MINUTES = 7 * 24 * 60


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation. Defaults are the 1x schedule of the reference systems (16 images a step).

    Workers are data-parallel: each has all weights. With R50-FPN those are 44.3 million, with R101-FPN 63.3 million; in
    float32 with gradients and momentum 12 bytes each (0.53 and 0.76 GB), with AdamW 16 (0.71 and 1.01 GB). Sharding
    them (FSDP) would save less than that on each GPU and send the weights around in every step.
    """

    steps: int = 90_000
    """Optimisation steps."""
    epochs: float = field(default=0.0, metadata={IN_PLACE_OF: "steps"})
    """Passes over the training images, in place of steps; an image that train.repeat_threshold repeats counts as often
    as it is shown. 0 = train.steps."""
    batch_size: int | Literal["auto"] = 16
    """Images per step over all workers, whatever their number; at least train.num_workers. auto = as many as fit into
    the GPUs, found by trying, at most 8 times reference_batch_size and a sixteenth of an epoch; on a CPU
    reference_batch_size."""
    num_workers: int = 1
    """Training processes (Ray Train workers)."""
    min_workers: int = 0
    """Go on with as few as this where machines are lost for good; 0 = wait for train.num_workers."""
    use_gpu: bool | Literal["auto"] = "auto"
    """One GPU for each worker (NCCL) instead of CPU (gloo); auto = where the cluster has GPUs, or can start machines
    with them."""
    accelerator_type: str = ""
    """Only GPUs of this kind, as Ray names it, such as H100; empty = any."""
    wait_minutes: float = 30.0
    """How long missing machines are waited for, at the start and after a loss: an autoscaler starts them, or lost ones
    come back. 0 = not at all. A cluster started by the job itself gets no more machines, and is not waited for."""
    threads_per_worker: int = 0
    """CPU threads of each worker; 0 = the machine's cores / workers on it."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd with momentum; adamw = Adam with decoupled weight decay."""
    learning_rate: float = 0.02
    """Peak learning rate for the whole batch, or see reference_batch_size."""
    reference_batch_size: int = 0
    """Batch that learning_rate is meant for: the rate follows batch_size in proportion (Goyal et al. 2017, linear
    scaling rule); 0 = learning_rate as it stands."""
    momentum: float = 0.9
    """SGD momentum; Adam's beta 1."""
    weight_decay: float = 1e-4
    """L2 penalty on weights; of adamw, decay."""
    weight_decay_bias: float = 0.0
    """The same on biases."""
    weight_decay_norm: float = 0.0
    """The same on the scales and shifts of norms."""
    accumulate: int = 1
    """Pieces in which each worker computes its part of a batch, one after the other, for batches that do not fit into
    memory. The result is that of the whole batch; it costs a second forward pass."""
    ema_decay: float = 0.0
    """Moving average of the weights that validation and labelling use, with this decay at its end; 0 = none."""
    compile: bool = False
    """Compile trunk and pyramid with torch.compile (minutes at the start, for long runs on a GPU)."""
    max_skipped_steps: int = 10
    """Steps in a row with a loss or gradient that is not finite, each skipped, after which the run stops."""
    warmup_steps: int = 1000
    """Steps of linear warm-up."""
    warmup_share: float = field(default=0.0, metadata={IN_PLACE_OF: "warmup_steps"})
    """Share of the run that warms up, in place of warmup_steps; 0 = train.warmup_steps."""
    warmup_factor: float = 0.001
    """Learning rate at step 0, as a share of the peak."""
    schedule: Literal["step", "cosine"] = "step"
    """After warm-up: step = multiply by decay_factor at decay_steps; cosine = to zero at the last step."""
    decay_steps: tuple[int, ...] = (60_000, 80_000)
    """Steps at which the learning rate falls (schedule: step)."""
    decay_shares: tuple[float, ...] = field(default=(), metadata={IN_PLACE_OF: "decay_steps"})
    """Shares of the run after which it falls, in place of decay_steps, for example 0.67 and 0.89; empty =
    train.decay_steps."""
    decay_factor: float = 0.1
    """What the learning rate is multiplied by at each of decay_steps."""
    clip_norm: float = 0.0
    """Upper limit of the gradient norm; 0 = none."""
    flip_probability: float = 0.5
    """Share of images mirrored left to right."""
    short_sides: tuple[int, ...] = ()
    """Short sides to choose from at random for each image, pixels; empty = model.input.short_side."""
    steps_per_size: int = 0
    """Steps in a row in which all images have the same one of short_sides, before another is drawn (YOLOv2: 10);
    0 = every image has its own."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Further changes to images and objects."""
    aspect_ratio_factor: int = 0
    """Images of one group of aspect ratios share a batch: 0 = portrait and landscape; k = 2 k groups between 1:2 and
    2:1 and the two beyond (torchvision's --aspect-ratio-group-factor)."""
    repeat_threshold: float = 0.0
    """Repeat-factor sampling (Gupta et al., LVIS, CVPR 2019): images with a category that fewer than this share of
    images have are shown more often; 0 = all alike."""
    mask_crop: int = 112
    """Side of the grid on which each ground-truth mask is kept, cropped to its box; 0 = input resolution."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass (bfloat16 by autocast)."""
    seed: int = 0
    """Seed of weights, sampling order and augmentation."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step always makes one."""
    checkpoint_minutes: float = 10.0
    """Minutes after a checkpoint until the next one, where that comes before checkpoint_every; 0 = by steps only."""
    validate_every: int = 5000
    """Steps between validations (COCO AP on data.val); the last step always validates; 0 = only the last."""
    validations: int = field(default=0, metadata={IN_PLACE_OF: "validate_every"})
    """So many validations, evenly over the run, in place of validate_every; 0 = train.validate_every."""
    log_every: int = 20
    """Steps between log entries (train.trackers, progress)."""
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """What keeps losses, scores and pictures: tensorboard = files in OUTPUT/tensorboard; mlflow = the server of
    MLFLOW_TRACKING_URI, or files in OUTPUT/mlruns; wandb = Weights & Biases (WANDB_API_KEY, or WANDB_MODE=offline)."""
    validate_in: Literal["workers", "task"] = "workers"
    """Who validates: the training workers, which wait for it; or tasks of their own on other resources of the cluster,
    while training goes on."""
    validation_tasks: int = 1
    """How many tasks share a validation's images (train.validate_in: task)."""
    validation_losses: bool = True
    """Compute the training losses on the validation data, too."""
    patience: int = 0
    """Stop after so many validations in a row without a better score; 0 = never."""
    pictures: int = 4
    """Validation images whose predictions are drawn beside the ground truth for train.trackers; 0 = none."""
    max_failures: int = 3
    """How often in a row lost workers or machines are replaced without a new checkpoint in between; each time training
    goes on from the last one. What a provider takes away with notice is not counted."""
    timeout_minutes: float = 10.0
    """How long workers wait for each other before one counts as hung and they start anew. The others wait for the first
    one while it scores a validation."""

    def __post_init__(self) -> None:
        require_typed("train", self)
        for name in ("steps", "num_workers", "learning_rate", "checkpoint_every", "log_every"):
            require_positive(f"train.{name}", getattr(self, name))
        for name, most in (
            *(("steps", _MAX_STEPS), ("num_workers", _MAX_WORKERS)),
            *(("learning_rate", _MAX_FACTOR), ("accumulate", _MAX_BATCH), ("max_skipped_steps", _MAX_STEPS)),
            ("validation_tasks", _MAX_WORKERS),
        ):
            require(0 < getattr(self, name) <= most, f"train.{name}", getattr(self, name), f"up to {most:,}, above 0")
        for name, most in (
            *(("patience", _MAX_STEPS), ("pictures", _MAX_PICTURES), ("threads_per_worker", _MAX_THREADS)),
            *(("weight_decay", _MAX_FACTOR), ("weight_decay_bias", _MAX_FACTOR), ("weight_decay_norm", _MAX_FACTOR)),
            *(("validate_every", _MAX_STEPS), ("reference_batch_size", _MAX_BATCH), ("max_failures", _MAX_WORKERS)),
            *(("aspect_ratio_factor", _MAX_GROUPS), ("warmup_steps", _MAX_STEPS), ("epochs", _MAX_STEPS)),
            *(("wait_minutes", _MAX_MINUTES), ("checkpoint_minutes", _MAX_MINUTES), ("validations", _MAX_STEPS)),
            ("steps_per_size", _MAX_STEPS),
        ):
            require_between(f"train.{name}", getattr(self, name), 0, most)
        for name in ("clip_norm", "seed"):
            require_not_negative(f"train.{name}", getattr(self, name))
        require(
            self.mask_crop == 0 or 3 <= self.mask_crop <= MAX_SIDE,
            "train.mask_crop",
            self.mask_crop,
            f"0 (input resolution), or 3 to {MAX_SIDE:,}",
        )
        require(
            0 < self.timeout_minutes <= _MAX_MINUTES,
            "train.timeout_minutes",
            self.timeout_minutes,
            f"above 0, up to {_MAX_MINUTES:,}",
        )
        self._check_rates()
        self._check_shares()
        self._check_batch()
        self._check_workers()
        self._check_lists()

    def _check_batch(self) -> None:
        if self.batch_size == "auto":
            require(
                self.reference_batch_size > 0,
                "train.reference_batch_size",
                self.reference_batch_size,
                "the batch that train.learning_rate is meant for, with train.batch_size auto",
            )
            return
        require_positive("train.batch_size", self.batch_size)
        require(self.batch_size <= _MAX_BATCH, "train.batch_size", self.batch_size, f"up to {_MAX_BATCH:,}, above 0")
        require(
            self.batch_size >= self.num_workers,
            "train.batch_size",
            self.batch_size,
            f"at least train.num_workers ({self.num_workers})",
        )
        require(self.peak_learning_rate <= _MAX_FACTOR, "train.learning_rate", self.peak_learning_rate, "a lower one")

    def _check_rates(self) -> None:
        require_fraction("train.repeat_threshold", self.repeat_threshold)
        require(0.0 <= self.ema_decay < 1.0, "train.ema_decay", self.ema_decay, "a number from 0, below 1")
        require(0.0 <= self.momentum < 1.0, "train.momentum", self.momentum, "a number from 0, below 1")
        for name in ("warmup_factor", "flip_probability"):
            require_fraction(f"train.{name}", getattr(self, name))
        require(0.0 < self.decay_factor <= 1.0, "train.decay_factor", self.decay_factor, "a number above 0, at most 1")

    def _check_shares(self) -> None:
        require(
            0.0 <= self.warmup_share < 1.0,
            "train.warmup_share",
            self.warmup_share,
            "a number from 0, below 1, for example 0.05",
        )
        require(
            tuple(sorted(set(self.decay_shares))) == tuple(self.decay_shares)
            and all(0.0 < share < 1.0 for share in self.decay_shares),
            "train.decay_shares",
            self.decay_shares,
            "increasing numbers between 0 and 1",
        )

    def _check_workers(self) -> None:
        require(
            0 <= self.min_workers <= self.num_workers,
            "train.min_workers",
            self.min_workers,
            f"0 to train.num_workers ({self.num_workers})",
        )
        require(
            not self.accelerator_type or self.use_gpu is not False,
            "train.accelerator_type",
            self.accelerator_type,
            "none where train.use_gpu is false",
        )

    def _check_lists(self) -> None:
        require(
            all(1 <= side <= MAX_SIDE for side in self.short_sides),
            "train.short_sides",
            self.short_sides,
            f"numbers above 0, up to {MAX_SIDE:,}",
        )
        require(
            self.steps_per_size == 0 or len(self.short_sides) > 0,
            "train.steps_per_size",
            self.steps_per_size,
            "0 where train.short_sides is empty",
        )
        require(
            tuple(sorted(set(self.decay_steps))) == tuple(self.decay_steps)
            and all(0 <= step <= _MAX_STEPS for step in self.decay_steps),
            "train.decay_steps",
            self.decay_steps,
            "increasing steps",
        )
        require(
            len(set(self.trackers)) == len(self.trackers), "train.trackers", self.trackers, "each tracker at most once"
        )

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate` for the batch as it is."""
        reference = self.reference_batch_size
        return self.learning_rate * (self.images_per_step / reference if reference else 1.0)

    @property
    def images_per_step(self) -> int:
        """`batch_size` of a run for which it is known: auto is replaced before anything is built."""
        assert self.batch_size != "auto", "train.batch_size is auto until find_batch_size has replaced it"
        return self.batch_size


@dataclass(frozen=True)
class TrainRun:
    """Train a Mask R-CNN on COCO-format data."""

    output: str
    """Folder of the run (local or s3://): checkpoints, logs, configuration. The same command resumes it.
    train.steps or epochs may have grown then, the data may have moved while the annotations stay the same, and what
    does not change what is learnt may be another: train.num_workers, min_workers, use_gpu, accelerator_type,
    threads_per_worker, checkpoint_every, checkpoint_minutes, validate_every, validations, validate_in,
    validation_tasks, validation_losses, log_every, trackers, pictures, max_failures, max_skipped_steps, wait_minutes,
    timeout_minutes, data.reader, data.workers, data.max_pixels, data.max_bad_fraction, storage, cluster."""
    init: str | None = None
    """Checkpoint folder to start from: weights whose names and shapes fit are taken, the others start afresh. Of
    several, separated by commas, the first that has a weight gives it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Detector."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data sets."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """S3."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray cluster."""

    def __post_init__(self) -> None:
        require_typed("", self)
        require(
            self.train.accumulate == 1 or self.model.backbone.norm != "sync_batch",
            "train.accumulate",
            self.train.accumulate,
            "1 with model.backbone.norm sync_batch, whose statistics are those of the whole batch (or norm frozen or "
            "group)",
        )
        require(
            self.train.accumulate == 1 or self.model.dense.loss.divisor != "average",
            "train.accumulate",
            self.train.accumulate,
            "1 with model.dense.loss.divisor average, which would count a batch once a piece (or divisor batch)",
        )
        require(
            self.train.batch_size != "auto" or self.model.dense.enabled,
            "train.batch_size",
            self.train.batch_size,
            "a number where the proposals come from a file (model.dense.enabled false)",
        )
