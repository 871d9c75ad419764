"""The detector of a labelling run, as other processes load it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from maskrcnn_core.config.model import Category
from maskrcnn_core.inference.code_fingerprint import code_fingerprint
from maskrcnn_core.inference.settings import PredictorSettings
from pipelines.labelling.expected_time import seconds_of_image
from pipelines.labelling.worker_settings import LoadPredictor, WorkerSettings


class DescribeCheckpoint(Protocol):
    """Signature of `maskrcnn_core.inference.predictor.describe_checkpoint`."""

    def __call__(self, checkpoint: str, settings: PredictorSettings) -> tuple[str, tuple[Category, ...]]:
        """Fingerprint and categories, without building the network."""
        ...


class SecondsOfImage(Protocol):
    """Signature of `pipelines.labelling.expected_time.seconds_of_image`."""

    def __call__(self, checkpoint: str, settings: PredictorSettings, threads: int) -> float:
        """Seconds that a worker needs for an image, roughly."""
        ...


@dataclass(frozen=True)
class Detector:
    """How a checkpoint becomes a detector, and what is known of it before.

    Attributes:
        load, describe: passed on to other processes, so that they must be picklable.
        settings: readable values beside the predictor's that a run's identity holds.
        code: fingerprint of the code that decides about its records.
        seconds_of_image: how long it will need.
    """

    load: LoadPredictor
    describe: DescribeCheckpoint
    settings: Mapping[str, Any] = field(default_factory=dict)
    code: Callable[[], str] = code_fingerprint
    seconds_of_image: SecondsOfImage = seconds_of_image

    def fingerprint(self, settings: WorkerSettings) -> str:
        """That the loaded detector would have.

        Raises:
            CheckpointError, ConfigError: as of `describe`.
        """
        fingerprint, _ = self.describe(settings.checkpoint, settings.predictor)
        return fingerprint
