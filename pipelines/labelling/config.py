"""The typed configuration of a labelling run."""

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.config.checks import (
    require,
    require_between,
    require_fraction,
    require_not_negative,
    require_positive,
    require_typed,
)
from maskrcnn_core.config.limits import MAX_PIXELS, MAX_REGIONS, MAX_SIDE
from pipelines.cluster.config import ClusterConfig
from pipelines.storage.config import StorageConfig

_MAX_WORKERS = 10_000
_MAX_THREADS = 4096
_MAX_READERS = 1024
_MAX_ROWS = 10_000_000
_MAX_PER_GPU = 64


@dataclass(frozen=True)
class LabelConfig:
    """Offline inference."""

    num_workers: int = 0
    """Detector processes (Ray actors); 0 = chosen from the cluster."""
    use_gpu: bool | Literal["auto"] = "auto"
    """A GPU for each worker; auto = where the cluster has GPUs, or can start machines with them."""
    workers_per_gpu: int = 1
    """Workers that share a GPU: another process, and so another interpreter, for what one cannot keep busy."""
    wait_minutes: float = 30.0
    """How long the first machines are waited for where the cluster has none for the workers: an autoscaler starts them,
    or lost ones come back. 0 = not at all. A cluster started by the job itself is not waited for."""
    threads_per_worker: int = 0
    """CPU threads of each worker; 0 = its share of its machine's cores, or of its container's quota. Also the logical
    CPUs that it holds of Ray; 0 = at most 2 with a GPU, and at most 8 where the pool grows."""
    batch_pixels: int = 0
    """Upper limit of padded input pixels in one batch; one image is always taken. 0 = one image at a time on a CPU,
    where a batch only fills the caches, and 9,000,000 on a GPU."""
    max_pixels: int = MAX_PIXELS
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
    rows_per_file: int = 0
    """Images of one Parquet file, which is also what a lost worker has to do again; 0 = some 30 seconds of work, at
    most 4000 on GPUs and 250 on CPUs, and fewer in the last files."""
    max_workers: int = 0
    """On a cluster that grows by itself: up to so many workers, as machines come; 0 = those that fit now, or as many as
    it can grow to where none fits yet."""
    image_timeout: float = 600.0
    """Seconds that reading one image may take, or it is unreadable, and that the detector may take for it, beside ten
    times the usual time for the others that are under way (half an hour in all before that is known); one that
    takes longer in two processes fails. 0 = no limit."""
    stalled_minutes: float = 60.0
    """The run ends where no file has been finished for so long: workers hang, or their machines do not come back. In
    proportion longer for files of more images than are chosen by default, for image pyramids and for mirrors. 0 =
    never."""
    readers: int = 0
    """Images that a worker reads at once; 0 = 16 of local files, 64 where some lie in an object store."""
    max_failed_fraction: float = 1.0
    """Exit with 1 if a larger share of images failed."""
    retry_failed: bool = False
    """Label again the images that failed in earlier starts."""
    changed_source: Literal["refuse", "keep"] = "refuse"
    """When the source has changed since its images were listed: refuse, or keep to the images as listed."""

    def __post_init__(self) -> None:
        require_typed("label", self)
        require_positive("label.max_pixels", self.max_pixels)
        for name in (
            "batch_pixels",
            "num_workers",
            "threads_per_worker",
            "rows_per_file",
            "max_workers",
            "image_timeout",
            "readers",
            "stalled_minutes",
            "wait_minutes",
        ):
            require_not_negative(f"label.{name}", getattr(self, name))
        for name, most in (
            *(("num_workers", _MAX_WORKERS), ("max_workers", _MAX_WORKERS), ("threads_per_worker", _MAX_THREADS)),
            *(("rows_per_file", _MAX_ROWS), ("readers", _MAX_READERS)),
        ):
            require_between(f"label.{name}", getattr(self, name), 0, most)
        require_between("label.workers_per_gpu", self.workers_per_gpu, 1, _MAX_PER_GPU)
        require(
            self.workers_per_gpu == 1 or self.use_gpu is not False,
            "label.workers_per_gpu",
            self.workers_per_gpu,
            "1 with label.use_gpu false; or set label.use_gpu true",
        )
        require_fraction("label.max_failed_fraction", self.max_failed_fraction)
        if self.min_score is not None:
            require_fraction("label.min_score", self.min_score)
        if self.max_detections is not None:
            require_between("label.max_detections", self.max_detections, 1, MAX_REGIONS)
        require(
            all(1 <= side <= MAX_SIDE for side in self.test_short_sides),
            "label.test_short_sides",
            self.test_short_sides,
            f"numbers above 0, up to {MAX_SIDE:,}",
        )


@dataclass(frozen=True)
class LabelRun:
    """Detect objects in an image collection and write one Parquet row per image."""

    checkpoint: str
    """Checkpoint folder."""
    images: str
    """Folder, glob, prefix of an object store, COCO json, S3 inventory (its manifest.json), .parquet or .csv with a
    column `uri`, .parquet with the images' bytes (also `data/*.parquet`), .tar (also those in folders and prefixes).
    Images may lie at gs:// and az:// too."""
    output: str
    """Folder of the run; rows go to OUTPUT/labels/*.parquet."""
    proposals: str | None = None
    """Proposals that an earlier run wrote with --label.record proposals, or jobs.propose; used instead of the
    checkpoint's RPN."""
    image_root: str | None = None
    """Folder that the file names of a COCO json are relative to, and which they may not leave: what is absolute, has a
    scheme or climbs out by `..` becomes a failed row, unless it lies below the folder all the same. null = looked for
    beside the json, and names that are absolute or begin with a scheme are read where they are."""
    label: LabelConfig = field(default_factory=LabelConfig)
    """Inference."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """S3."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray cluster."""

    def __post_init__(self) -> None:
        require_typed("", self)
