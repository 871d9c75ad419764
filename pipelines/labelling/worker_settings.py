"""How a worker of a labelling run is set up, and what it needs of a detector; without torch, which takes seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import ImageError
from maskrcnn_core.inference.settings import PredictorSettings
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.records.proposals import ProposalRecord
from pipelines.images.manifest import Manifest

if TYPE_CHECKING:
    from maskrcnn_core.data.proposals import ImageProposals

CONCURRENT_CALLS = 2
"""Threads that call a worker: while the images of one are in the network, the other reads files and builds rows."""


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker loads and drives its detector.

    Attributes:
        checkpoint, predictor: as `load_predictor` takes them.
        proposals: where the regions come from instead of the RPN; empty = the RPN.
        threads: CPU threads of the network; 0 = this node's cores / workers_per_node.
        workers_per_node: how many workers share a node.
        group_size: images given to the detector at once.
        readers: files read at the same time.
        manifest, output: of the run.
        retry_failed: chunks have a file already, whose failed rows are labelled again.
        image_timeout: seconds for reading one image, and for detecting on it; 0 = no limit.
        image_root: the only folder that images are read of; empty = wherever they lie.
    """

    checkpoint: str
    predictor: PredictorSettings
    proposals: str = ""
    threads: int = 0
    workers_per_node: int = 1
    group_size: int = 8
    readers: int = 16
    manifest: Manifest | None = None
    output: str = ""
    retry_failed: bool = False
    image_timeout: float = 0.0
    image_root: str = ""


class Predicting(Protocol):
    """The part of `maskrcnn_core.inference.predictor.Predictor` that a worker uses."""

    @property
    def fingerprint(self) -> str:
        """Of weights and settings."""
        ...

    @property
    def categories(self) -> tuple[Category, ...]:
        """In label order."""
        ...

    @property
    def max_proposals(self) -> int:
        """How many given proposals of an image are looked at."""
        ...

    def predict(
        self, encoded: Sequence[bytes | ImageError], proposals: "Sequence[ImageProposals | ImageError] | None" = None
    ) -> list[ImageRecord]:
        """One record for each image, in order, also for one that fails; `proposals` replace the RPN's."""
        ...

    def propose(self, encoded: Sequence[bytes | ImageError]) -> list[ProposalRecord]:
        """The RPN's proposals of each image, in order, also for one that fails."""
        ...


class LoadPredictor(Protocol):
    """Signature of `maskrcnn_core.inference.predictor.load_predictor`."""

    def __call__(self, checkpoint: str, settings: PredictorSettings) -> Predicting:
        """Builds the detector."""
        ...
