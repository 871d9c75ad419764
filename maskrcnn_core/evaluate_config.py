"""The typed configuration of scoring."""

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.config_checks import require
from maskrcnn_core.report_config import PicturesConfig


@dataclass(frozen=True)
class EvaluateConfig:
    """Scoring of labels."""

    max_detections: int = 100
    """Best detections of an image and category that count (COCO: 100)."""
    keypoint_sigmas: tuple[float, ...] = ()
    """Spread of each keypoint's annotation as a share of the object's scale; empty = COCO's, for its 17 keypoints."""
    engine: Literal["hotcoco", "pycocotools"] = "hotcoco"
    """hotcoco = compiled, bit-equal to pycocotools (tests hold it so); pycocotools = the reference itself."""

    def __post_init__(self) -> None:
        require(self.max_detections >= 10, "evaluate.max_detections", self.max_detections, "at least 10")
        require(
            all(sigma > 0 for sigma in self.keypoint_sigmas),
            "evaluate.keypoint_sigmas",
            self.keypoint_sigmas,
            "numbers above 0",
        )


@dataclass(frozen=True)
class EvaluateRun:
    """Score labels against COCO annotations."""

    labels: str
    """Folder that jobs.label wrote, or its labels/ folder, or one .parquet file."""
    annotations: str
    """COCO instances JSON file."""
    output: str | None = None
    """JSON file for the numbers; null = print only."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Scoring."""
    report: str | None = None
    """Folder for a page with numbers, curves and pictures (index.html); null = none."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    """Galleries of the report."""
