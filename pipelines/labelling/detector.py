"""The detector of a labelling run, as other processes load it."""

from dataclasses import dataclass
from typing import Protocol

from maskrcnn_core.config.model import Category
from maskrcnn_core.inference.settings import PredictorSettings
from pipelines.labelling.worker_settings import LoadPredictor, WorkerSettings


class DescribeCheckpoint(Protocol):
    """Signature of `maskrcnn_core.inference.predictor.describe_checkpoint`."""

    def __call__(self, checkpoint: str, settings: PredictorSettings) -> tuple[str, tuple[Category, ...]]:
        """Fingerprint and categories, without building the network."""
        ...


@dataclass(frozen=True)
class Detector:
    """How a checkpoint becomes a detector; both are passed on to other processes, so they must be picklable."""

    load: LoadPredictor
    describe: DescribeCheckpoint

    def fingerprint(self, settings: WorkerSettings) -> str:
        """That the loaded detector would have.

        Raises:
            CheckpointError, ConfigError: as of `describe`.
        """
        fingerprint, _ = self.describe(settings.checkpoint, settings.predictor)
        return fingerprint
