"""The run settings of reports."""

from dataclasses import dataclass, field

from maskrcnn_core.config.checks import require_typed
from maskrcnn_core.report.settings import PicturesConfig
from pipelines.cluster.config import ClusterConfig
from pipelines.storage.config import StorageConfig


@dataclass(frozen=True)
class ReportRun:
    """Show what a label run holds, as one HTML page."""

    labels: str
    """Folder that jobs.label wrote, or its labels/ folder, or one .parquet file."""
    output: str
    """Folder for index.html."""
    images: str | None = None
    """Folder where the images lie now; null = where the labels say."""
    title: str = "Label report"
    """Heading of the page."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    """Galleries."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """S3."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray cluster; runs of at most 2,000 label files are read without one."""

    def __post_init__(self) -> None:
        require_typed("", self)
