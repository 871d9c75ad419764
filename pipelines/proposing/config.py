"""The typed configuration of region proposals without a network."""

from dataclasses import dataclass, field, replace

from maskrcnn_core.config.checks import require, require_typed
from maskrcnn_core.region_proposals.settings import ProposeConfig
from pipelines.cluster.config import ClusterConfig
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.storage.config import StorageConfig

# What a network is asked for, which there is none of here: with the values that mean nothing.
_OF_NETWORKS = ("batch_pixels", "workers_per_gpu", "test_short_sides", "test_flip", "precision")

# Sources whose images carry the ids of annotations.
_WITH_IDS = (".json", ".parquet", ".csv")


@dataclass(frozen=True)
class ProposeRun:
    """Propose regions of every image without a network, and write one Parquet row per image."""

    images: str
    """As of jobs.label: folder, glob, prefix, COCO json, table, .tar; a COCO json where proposals are trained on."""
    output: str
    """Folder of the run; rows go to OUTPUT/labels/*.parquet, as --data.train.proposals and --proposals read them."""
    annotations: str | None = None
    """COCO instances JSON to score the finished proposals against: average recall at 10, 100 and 1000."""
    image_root: str | None = None
    """Folder that the file names of a COCO json are relative to, and which they may not leave; null = looked for beside
    the json."""
    propose: ProposeConfig = field(default_factory=ProposeConfig)
    """The method."""
    label: LabelConfig = field(default_factory=LabelConfig)
    """Work and images, as of jobs.label; what a network is asked for does not apply."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """S3."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray cluster."""

    def __post_init__(self) -> None:
        require_typed("", self)
        defaults = LabelConfig()
        for name in _OF_NETWORKS:
            value, default = getattr(self.label, name), getattr(defaults, name)
            require(value == default, f"label.{name}", value, f"{default!r}: no network computes here")
        require(self.label.use_gpu is not True, "label.use_gpu", True, "false: no method computes on a GPU")
        for name, instead in (("max_detections", "max_proposals"), ("min_score", "max_proposals")):
            value = getattr(self.label, name)
            require(value is None, f"label.{name}", value, f"null; propose.{instead} says how many are kept")
        require(
            not self.annotations or self.images.lower().endswith(_WITH_IDS),
            "images",
            self.images,
            "with --annotations a COCO json (mostly the same file, with --image_root FOLDER) or a table, whose images "
            "carry the annotations' ids",
        )

    def labelling(self) -> LabelRun:
        """The same as a run of the labelling, whose rows are proposals; workers have one thread each unless set."""
        label = replace(
            self.label,
            record="proposals",
            use_gpu=False,
            threads_per_worker=self.label.threads_per_worker or 1,
        )
        return LabelRun(
            checkpoint=self.propose.method,
            images=self.images,
            output=self.output,
            image_root=self.image_root,
            label=label,
            storage=self.storage,
            cluster=self.cluster,
        )
