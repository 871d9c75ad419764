"""The typed configuration of exporting labels."""

from dataclasses import dataclass, field

from maskrcnn_core.config.checks import require_fraction, require_not_negative, require_typed
from maskrcnn_core.export.formats import FormatName
from pipelines.cluster.config import ClusterConfig
from pipelines.storage.config import StorageConfig


@dataclass(frozen=True)
class ExportConfig:
    """What is exported, and how."""

    min_score: float = 0.0
    """Leave out detections below this score."""
    categories: tuple[str, ...] = ()
    """Export only these categories, by name; empty = all."""
    polygons: bool = False
    """Outlines instead of exact pixels, in formats that have both (yolo has outlines always, coco pixels)."""
    tolerance: float = 0.5
    """How far a polygon may be off the mask's outline, pixels; 0 = every corner."""
    min_keypoint_score: float = 0.05
    """Keypoints of lower probability are exported as not labelled; format coco keeps all, with their probabilities."""
    image_prefix: str | None = None
    """Address of the folder of the images, such as /data/local-files/?d=photos/, in formats that name images by address
    (label_studio); null = the labels' own uris."""
    link_images: bool = False
    """Put symbolic links to the images into the export, in formats that look for images there (yolo), so that it can be
    trained on as it is."""

    def __post_init__(self) -> None:
        require_typed("export", self)
        for name in ("min_score", "min_keypoint_score"):
            require_fraction(f"export.{name}", getattr(self, name))
        require_not_negative("export.tolerance", self.tolerance)


@dataclass(frozen=True)
class ExportRun:
    """Write labels in another tool's format."""

    labels: str
    """Folder that jobs.label wrote, or its labels/ folder, or one .parquet file."""
    format: FormatName
    """Whose; below is what each writes."""
    output: str
    """File to write, or folder in formats that are one; must not exist."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """What is exported, and how."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """S3."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray cluster; runs of at most 2,000 label files are exported without one."""

    def __post_init__(self) -> None:
        require_typed("", self)
