"""The typed configuration of scoring."""

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.config.checks import require, require_between, require_fraction, require_positive, require_typed
from maskrcnn_core.config.limits import MAX_REGIONS
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.report.settings import PicturesConfig
from pipelines.cluster.config import ClusterConfig
from pipelines.labelling.config import LabelConfig
from pipelines.storage.config import StorageConfig

_MAX_SAMPLES = 100_000


@dataclass(frozen=True)
class EvaluateConfig:
    """Scoring of labels."""

    max_detections: int = 100
    """Best detections of an image and category that count (COCO: 100)."""
    keypoint_sigmas: tuple[float, ...] = ()
    """Spread of each keypoint's annotation as a share of the object's scale; empty = COCO's, for its 17 keypoints."""
    engine: Literal["hotcoco", "pycocotools"] = "hotcoco"
    """hotcoco = compiled, bit-equal to pycocotools (tests hold it so); pycocotools = the reference itself."""
    images: Literal["all", "labelled"] = "all"
    """all = an annotated image without a good label row counts as one in which nothing was found; labelled = it is left
    out. Either way such images are counted and named."""
    distributed: Literal["auto", "always", "never"] = "auto"
    """Score shards as Ray tasks; auto = where a cluster is given or in use, or there are many labels (2 GiB, or 2,000
    files)."""
    images_per_shard: int = 1000
    """Images that one task scores, about; files of labels are not divided below their row groups."""
    details: bool = False
    """Also curves, best thresholds, confusion matrix, error analysis, calibration, intervals, boundary AP, LVIS' AP."""
    details_min_score: float = 0.5
    """Detections below are left out of the confusion matrix."""
    bootstrap_samples: int = 200
    """Samples of images drawn for the intervals of details and comparisons."""

    def __post_init__(self) -> None:
        require_typed("evaluate", self)
        require(self.max_detections >= 10, "evaluate.max_detections", self.max_detections, "at least 10")
        require(
            all(sigma > 0 for sigma in self.keypoint_sigmas),
            "evaluate.keypoint_sigmas",
            self.keypoint_sigmas,
            "numbers above 0",
        )
        require_between("evaluate.max_detections", self.max_detections, 10, MAX_REGIONS)
        require_fraction("evaluate.details_min_score", self.details_min_score)
        require_positive("evaluate.images_per_shard", self.images_per_shard)
        require_positive("evaluate.bootstrap_samples", self.bootstrap_samples)
        require_between("evaluate.bootstrap_samples", self.bootstrap_samples, 1, _MAX_SAMPLES)


@dataclass(frozen=True)
class EvaluateRun:
    """Score labels against COCO annotations."""

    labels: str = ""
    """Folder that jobs.label wrote, or its labels/ folder, or one .parquet file, or COCO results .json of any system.
    With --checkpoint: folder for the labels that are made; empty = they are not kept."""
    annotations: str = ""
    """COCO instances JSON file, or a folder of Parquet shards (docs/training.md)."""
    output: str | None = None
    """JSON file for the numbers; null = print only."""
    checkpoint: str | None = None
    """Checkpoint to label the annotated images with first; null = labels are there."""
    images: str | None = None
    """With --checkpoint: folder that the file names of the annotations are relative to; null = looked for beside. With
    --report: the same, for its pictures; null = where the labels say."""
    compare: str | None = None
    """A second run's labels on the same annotations, to compare with the first."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Scoring."""
    report: str | None = None
    """Folder for a page with numbers, curves and pictures (index.html); null = none."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    """Galleries of the report."""
    label: LabelConfig = field(default_factory=LabelConfig)
    """Inference (with --checkpoint)."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """S3."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray cluster."""

    def __post_init__(self) -> None:
        require_typed("", self)
        needed = ("annotations",) if self.checkpoint else ("labels", "annotations")
        missing = [f"--{name}" for name in needed if not getattr(self, name)]
        if missing:
            raise ConfigError(f"missing {', '.join(missing)}; see --help")
        used = bool(self.checkpoint or self.report)
        require(not self.images or used, "images", self.images, "nothing without --checkpoint or --report")
        if self.report and self.labels.lower().endswith(".json"):
            raise ConfigError(
                f"report: its pictures need label records, but --labels {self.labels} are COCO results; "
                "leave out --report"
            )
