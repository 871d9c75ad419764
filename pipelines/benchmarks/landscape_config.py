"""The typed configuration of what compares systems of one stage and of more."""

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.config.checks import require, require_between, require_not_negative, require_positive, require_typed
from maskrcnn_core.config.model import ModelConfig
from pipelines.training.config import TrainConfig
from pipelines.training.data_config import DataConfig

_MAX_MEASURED = 1000
_MAX_SECONDS = 1e9


@dataclass(frozen=True)
class LandscapeRun:
    """Measure accuracy and speed of several systems, each at its own settings, one point a system."""

    checkpoint: str
    """Checkpoint folders, separated by commas; each as NAME=FOLDER, or a folder, whose trunk and name are shown."""
    images: str
    """Folder that the file names of the annotations are relative to."""
    annotations: str
    """COCO instances JSON of the images."""
    output: str = "landscape"
    """Folder for landscape.json, .csv, .png and .svg."""
    num_images: int = 0
    """First images of the annotation file to use; 0 = all."""
    rounds: int = 1
    """How often each image is measured; the median over all counts."""
    max_detections: int = 100
    """Best detections of an image and category that count (COCO: 100)."""
    use_gpu: bool = False
    """Compute on the GPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network."""
    threads: int = 0
    """CPU threads; 0 = the machine's cores."""
    clock: Literal["wall", "cpu"] = "wall"
    """wall = time that passes; cpu = time that all threads compute, for a machine that has other work as well."""

    def __post_init__(self) -> None:
        require_typed("", self)
        folders = [folder for _, folder in self.systems]
        require(bool(folders) and all(folders), "checkpoint", self.checkpoint, "folders, or NAME=FOLDER, with commas")
        names = [name for name, _ in self.systems if name]
        require(len(set(names)) == len(names), "checkpoint", self.checkpoint, "a name of its own for each folder")
        require_positive("rounds", self.rounds)
        require(self.clock == "wall" or not self.use_gpu, "clock", self.clock, "wall where a GPU computes")
        require(self.max_detections >= 10, "max_detections", self.max_detections, "at least 10")
        for name in ("num_images", "threads"):
            require_not_negative(name, getattr(self, name))

    @property
    def systems(self) -> tuple[tuple[str, str], ...]:
        """Name, which may be empty, and folder of each."""
        parts = (part.strip().rpartition("=") for part in self.checkpoint.split(",") if part.strip())
        return tuple((name.strip(), folder.strip()) for name, _, folder in parts)


@dataclass(frozen=True)
class StepCostRun:
    """Measure what a training step costs in processor time, and how many steps a budget buys: systems are compared
    after equal time, not after equal steps."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Detector."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data sets; only data.train is used."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    seconds: float = 240.0
    """The budget, processor seconds."""
    measured: int = 8
    """Steps to measure, after two that don't count."""
    threads: int = 1
    """CPU threads of the network."""

    def __post_init__(self) -> None:
        require_typed("", self)
        require(0 < self.seconds <= _MAX_SECONDS, "seconds", self.seconds, "a number above 0")
        require_between("measured", self.measured, 1, _MAX_MEASURED)
        require_positive("threads", self.threads)
        require(
            bool(self.data.train.annotations),
            "data.train.annotations",
            self.data.train.annotations,
            "annotations to train on",
        )
        require(self.train.batch_size != "auto", "train.batch_size", self.train.batch_size, "a number")
