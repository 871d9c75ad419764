"""The typed configuration of exporting labels."""

from dataclasses import dataclass, field
from typing import Literal

from maskrcnn_core.config_checks import require_fraction, require_not_negative, require_typed

ExportFormat = Literal["coco", "coco_dataset", "yolo", "label_studio", "cvat", "fiftyone"]


@dataclass(frozen=True)
class ExportConfig:
    """What is exported, and how."""

    min_score: float = 0.0
    """Leave out detections below this score."""
    categories: tuple[str, ...] = ()
    """Export only these categories, by name; empty = all."""
    polygons: bool = False
    """Outlines instead of exact pixels, in coco_dataset, label_studio, cvat and fiftyone (yolo has outlines always)."""
    tolerance: float = 0.5
    """How far a polygon may be off the mask's outline, pixels; 0 = every corner."""
    min_keypoint_score: float = 0.05
    """Keypoints of lower probability are exported as not labelled; format coco keeps all, with their probabilities."""
    image_prefix: str | None = None
    """label_studio: address of the folder of the images, such as /data/local-files/?d=photos/; null = the labels' own
    uris."""
    link_images: bool = False
    """yolo: make images/ of symbolic links to the images, so that the export can be trained on as it is."""

    def __post_init__(self) -> None:
        require_typed("export", self)
        for name in ("min_score", "min_keypoint_score"):
            require_fraction(f"export.{name}", getattr(self, name))
        require_not_negative("export.tolerance", self.tolerance)


@dataclass(frozen=True)
class ExportRun:
    """Write labels in another tool's format."""

    labels: str
    """Folder that jobs.label wrote, or its labels/ folder, or one .parquet file."""
    format: ExportFormat
    """coco = results JSON; coco_dataset = images, annotations, categories; yolo = segmentation txt and data.yaml;
    label_studio = tasks with predictions; cvat = CVAT for images 1.1; fiftyone = folder of its COCODetectionDataset."""
    output: str
    """File to write (yolo, fiftyone: folder); must not exist."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """What is exported, and how."""

    def __post_init__(self) -> None:
        require_typed("", self)
