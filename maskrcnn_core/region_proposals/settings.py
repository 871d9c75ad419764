"""The typed configuration of region proposals that need no network."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from maskrcnn_core.config.checks import (
    require,
    require_between,
    require_fraction,
    require_not_negative,
    require_typed,
)
from maskrcnn_core.config.limits import MAX_LISTED, MAX_REGIONS, MAX_SIDE

Method = Literal["selective_search", "edge_boxes", "grid", "sliding_windows"]

_MAX_CELLS = 1000
_MAX_RATIO = 100.0
_LEAST_STEP = 0.01


@dataclass(frozen=True)
class SelectiveSearchConfig:
    """Selective search (Uijlings et al., IJCV 2013), of OpenCV's contrib package."""

    strategy: Literal["fast", "quality", "single"] = "fast"
    """Which colour spaces, similarities and segmentations are combined; fast as R-CNN and Fast R-CNN had it."""
    side: int = 500
    """Images are resized so that their longer side has so many pixels (R-CNN: 500, which is Pascal VOC's); 0 = as they
    are."""

    def __post_init__(self) -> None:
        require_typed("propose.selective_search", self)
        require_between("propose.selective_search.side", self.side, 0, MAX_SIDE)


@dataclass(frozen=True)
class EdgeBoxesConfig:
    """Edge boxes (Zitnick and Dollar, ECCV 2014), of OpenCV's contrib package."""

    model: str = ""
    """Model file of structured edges, on every machine that computes: opencv_extra's
    testdata/cv/ximgproc/model.yml.gz."""
    alpha: float = 0.65
    """Step of the sliding search: IoU of neighbouring boxes."""
    beta: float = 0.75
    """NMS threshold, IoU."""

    def __post_init__(self) -> None:
        require_typed("propose.edge_boxes", self)
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            require(0.0 < value < 1.0, f"propose.edge_boxes.{name}", value, "a number between 0 and 1")


@dataclass(frozen=True)
class GridConfig:
    """Boxes that lie in every image alike (G-CNN, CVPR 2016)."""

    cells: tuple[int, ...] = (2, 5, 10)
    """Of each scale: how many boxes side by side fill the image, in both directions."""
    overlaps: tuple[float, ...] = (0.7, 0.5, 0.0)
    """Of each scale: the most that neighbouring boxes share, of a side (G-CNN: .9 .8 .7 in training, .7 .5 0 later)."""

    def __post_init__(self) -> None:
        require_typed("propose.grid", self)
        require(0 < len(self.cells) <= MAX_LISTED, "propose.grid.cells", self.cells, f"1 to {MAX_LISTED} numbers")
        for cells in self.cells:
            require_between("propose.grid.cells", cells, 1, _MAX_CELLS)
        require(
            len(self.overlaps) == len(self.cells),
            "propose.grid.overlaps",
            self.overlaps,
            f"one for each of propose.grid.cells ({len(self.cells)})",
        )
        for overlap in self.overlaps:
            require(0.0 <= overlap < 1.0, "propose.grid.overlaps", overlap, "numbers from 0 to below 1")


@dataclass(frozen=True)
class SlidingWindowsConfig:
    """Windows of some sizes in pixels, each moved over the whole image."""

    sides: tuple[float, ...] = (16, 32, 64, 128, 256, 512)
    """Square roots of the windows' areas, pixels; what does not fit into an image is left out there."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Heights by widths."""
    step: float = 0.25
    """Share of its sides that a window moves by; larger in images where there would be more than
    propose.max_proposals."""

    def __post_init__(self) -> None:
        require_typed("propose.sliding_windows", self)
        for name, least, most in (("sides", 1, MAX_SIDE), ("ratios", 1 / _MAX_RATIO, _MAX_RATIO)):
            values = getattr(self, name)
            where = f"propose.sliding_windows.{name}"
            require(0 < len(values) <= MAX_LISTED, where, values, f"1 to {MAX_LISTED} numbers")
            for value in values:
                require_between(where, value, least, most)
        require_fraction("propose.sliding_windows.step", self.step)
        require_between("propose.sliding_windows.step", self.step, _LEAST_STEP, 1)


@dataclass(frozen=True)
class ProposeConfig:
    """Region proposals without a network."""

    method: Method = "selective_search"
    """selective_search and edge_boxes need the package's extra `proposals`; grid and sliding_windows need nothing."""
    max_proposals: int = 2000
    """Best ones of an image that are kept."""
    min_side: float = 0.0
    """Boxes with a shorter side are dropped, pixels of the original image (R-CNN: 20, of 500)."""
    selective_search: SelectiveSearchConfig = field(default_factory=SelectiveSearchConfig)
    """Selective search."""
    edge_boxes: EdgeBoxesConfig = field(default_factory=EdgeBoxesConfig)
    """Edge boxes."""
    grid: GridConfig = field(default_factory=GridConfig)
    """A grid."""
    sliding_windows: SlidingWindowsConfig = field(default_factory=SlidingWindowsConfig)
    """Sliding windows."""

    def __post_init__(self) -> None:
        require_typed("propose", self)
        require_between("propose.max_proposals", self.max_proposals, 1, MAX_REGIONS)
        require_not_negative("propose.min_side", self.min_side)
        needs_model = self.method == "edge_boxes"
        require(
            not needs_model or bool(self.edge_boxes.model),
            "propose.edge_boxes.model",
            self.edge_boxes.model,
            "with propose.method edge_boxes the model file of structured edges, which OpenCV's package does not hold: "
            "testdata/cv/ximgproc/model.yml.gz of github.com/opencv/opencv_extra",
        )


def deciding_values(config: ProposeConfig) -> dict[str, Any]:
    """The settings that change the proposals of this method, by name, as JSON can hold them.

    The place of a model file is none of them; its content is (`proposer.fingerprint`).
    """
    of_method = {
        f"propose.{config.method}.{name}": list(value) if isinstance(value, tuple) else value
        for name, value in asdict(getattr(config, config.method)).items()
        if name != "model"
    }
    return {
        "propose.method": config.method,
        "propose.max_proposals": config.max_proposals,
        "propose.min_side": config.min_side,
        **of_method,
    }
