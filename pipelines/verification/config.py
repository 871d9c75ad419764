"""The typed configuration of verifying a labelling run."""

from dataclasses import dataclass, field

from maskrcnn_core.config.checks import require_typed
from pipelines.cluster.config import ClusterConfig
from pipelines.storage.config import StorageConfig


@dataclass(frozen=True)
class VerifyRun:
    """Prove that a labelling run is whole: every image once, every row well-formed, one model."""

    labels: str
    """Output folder of jobs.label (or its labels/ folder); s3:// too."""
    output: str | None = None
    """JSON file for the findings; null = print only."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    """S3."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray cluster; small runs are verified without one."""

    def __post_init__(self) -> None:
        require_typed("", self)
