"""The typed configuration of finding priors."""

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.config.checks import require_between, require_typed


@dataclass(frozen=True)
class PriorsConfig:
    """How the boxes are seen, and how many priors stand for them."""

    kind: Literal["sizes", "boxes"] = "sizes"
    """`sizes`: widths and heights, by IoU, as YOLOv2 has them; `boxes`: whole boxes with their places in the image, by
    distance, as MultiBox has them."""
    number: int = 5
    """Priors to find."""
    height: int = 416
    """Height of the network's input, pixels."""
    width: int = 416
    """Width of the network's input, pixels."""
    fit: Literal["letterbox", "square"] = "letterbox"
    """How an image becomes the input: letterbox = scaled as it is until it fits; square = each side by itself."""
    stride: int = 32
    """Pixels of the input that a cell of the network's map has; sizes are also shown in cells."""
    max_objects: int = 1_000_000
    """Objects to look at; of more, a random sample."""
    seed: int = 0
    """Of the sample and of the beginnings of k-means."""

    def __post_init__(self) -> None:
        require_typed("priors", self)
        for name in ("height", "width", "stride"):
            require_between(f"priors.{name}", getattr(self, name), 1, 10_000)
        require_between("priors.number", self.number, 1, 1000)
        require_between("priors.max_objects", self.max_objects, 1, 10_000_000)
        require_between("priors.seed", self.seed, 0, 2**32 - 1)


@dataclass(frozen=True)
class PriorsRun:
    """Boxes that stand for those of a data set, by k-means: the priors of YOLOv2 and MultiBox."""

    annotations: str
    """COCO json, or a folder of Parquet shards; s3:// too."""
    output: str | None = None
    """JSON file for the priors; null = print only."""
    priors: PriorsConfig = field(default_factory=PriorsConfig)
    """How."""

    def __post_init__(self) -> None:
        require_typed("", self)
