"""How a worker of a labelling run is set up, and what it needs of a detector; without torch, which takes seconds."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from maskrcnn_core.inference.settings import PredictorSettings
from pipelines.images.manifest import Manifest
from pipelines.labelling.config import LabelConfig

if TYPE_CHECKING:
    from pipelines.labelling.detector_stream import Predicting

# Images that the board knows by one name: so many that it is asked rarely, and so few that progress shows.
GROUP_SIZE_CPU = 8
GROUP_SIZE_GPU = 256

CONCURRENT_CALLS = 2
"""Threads that call a worker: while the images of one are in the network, the other reads files and builds rows."""


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker loads and drives its detector.

    Attributes:
        checkpoint, predictor: as `load_predictor` takes them.
        proposals: where the regions come from instead of the RPN; empty = the RPN.
        threads: CPU threads of the network; 0 = its share of the machine's cores, found out in the worker.
        workers_per_node: how many workers share a machine at most; 0 = as many as it has room for.
        cpus: logical CPUs of Ray that a worker holds; 0 = it runs without Ray.
        workers_per_gpu: how many workers share a GPU.
        group_size: images that the board knows by one name, and that are suspected together after a crash.
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
    cpus: int = 0
    workers_per_gpu: int = 1
    group_size: int = 8
    readers: int = 16
    manifest: Manifest | None = None
    output: str = ""
    retry_failed: bool = False
    image_timeout: float = 0.0
    image_root: str = ""


class LoadPredictor(Protocol):
    """Signature of `maskrcnn_core.inference.predictor.load_predictor`."""

    def __call__(self, checkpoint: str, settings: PredictorSettings) -> "Predicting":
        """Builds the detector."""
        ...


def on_device(settings: WorkerSettings, label: LabelConfig) -> WorkerSettings:
    """The settings of workers that compute where `label.use_gpu`, which is chosen now, says."""
    if not label.use_gpu:
        return settings
    return replace(settings, predictor=replace(settings.predictor, device="cuda"), group_size=GROUP_SIZE_GPU)
