"""A proposer in the place of a labelling run's detector: images as they come, their proposals one by one."""

import time
from collections.abc import Generator, Iterable

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.inference.preparation import Request
from maskrcnn_core.inference.settings import PredictorSettings, combined_fingerprint
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.records.proposals import ProposalRecord
from maskrcnn_core.region_proposals.proposer import Proposer, fingerprint
from maskrcnn_core.region_proposals.settings import ProposeConfig


class ProposerStream:
    """`labelling.detector_stream.Predicting` without a network.

    Args:
        config: the method.
        settings: `max_pixels` and `apply_exif` of the run; the others of theirs have no effect.

    Attributes:
        categories: none.
        max_proposals: 0, as none are given.
        fingerprint: of the method, and of what else decides.
        idle_since: when the last image was finished, seconds of `time.monotonic`; None while one is under way.

    Raises:
        ConfigError: what the method needs is not installed, or cannot be used.
    """

    categories: tuple[Category, ...] = ()
    max_proposals = 0

    def __init__(self, config: ProposeConfig, settings: PredictorSettings) -> None:
        self._proposer = Proposer(config, max_pixels=settings.max_pixels, apply_exif=settings.apply_exif)
        self.fingerprint = combined_fingerprint(fingerprint(config), settings)
        self.idle_since: float | None = time.monotonic()

    def propose_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ProposalRecord]]]:
        """Records by keys, one at a time, also of images that fail; None among the requests is a pause."""
        for request in requests:
            if request is None:
                continue
            self.idle_since = None
            record = self._proposer.propose(request.content)
            self.idle_since = time.monotonic()
            yield [(request.key, record)]

    def predict_each(self, requests: Iterable[Request | None]) -> Generator[list[tuple[int, ImageRecord]]]:
        """There are no detections.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("label.record: got 'detections', expected 'proposals': there is no network that detects")


def load_proposer(config: ProposeConfig, checkpoint: str, settings: PredictorSettings) -> ProposerStream:
    """As `labelling.worker_settings.LoadPredictor` once `config` is given; `checkpoint` says nothing."""
    return ProposerStream(config, settings)


def describe_proposer(
    config: ProposeConfig, checkpoint: str, settings: PredictorSettings
) -> tuple[str, tuple[Category, ...]]:
    """As `labelling.detector.DescribeCheckpoint` once `config` is given; `checkpoint` says nothing.

    Raises:
        ConfigError: what the method needs is not installed, or cannot be read.
    """
    return combined_fingerprint(fingerprint(config), settings), ()
