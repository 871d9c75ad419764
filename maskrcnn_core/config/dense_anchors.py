"""The dense stage's anchors: which boxes stand at each position of each level."""

from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.config.checks import require, require_between, require_fraction, require_typed
from maskrcnn_core.config.limits import MAX_BOXES, MAX_LISTED, MAX_PIXEL


@dataclass(frozen=True)
class AnchorConfig:
    """The sliding windows of the dense stage."""

    sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Square root of the anchor's area, input pixels: one for each pyramid level, finest first, or see every_level."""
    every_level: bool = False
    """All sizes at every position of every level (ratios; one-map models, torchvision's MobileNet models)."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width of the anchors at every position."""
    rounded: bool = False
    """Round anchor corners to whole pixels as torchvision does."""
    fitted_strides: bool = False
    """Space anchors by input size / map size, whole pixels (torchvision: P6 of a 480 wide input steps by 60, not
    64); with priors as it comes out."""
    kind: Literal["ratios", "octaves", "priors", "boxes"] = "ratios"
    """ratios = of each size one box for each ratio (RPN; with one ratio, sizes that are the levels' strides and
    model.dense.coding.kind edges the points of FCOS); octaves = of each level's size also some sizes up to its double,
    each in every ratio (RetinaNet); priors = as model.dense.anchors.priors says (SSD, YOLOv2, YOLOv1); boxes = those of
    model.dense.anchors.boxes, once an image (MultiBox)."""
    octave_steps: int = 3
    """Sizes from a level's own up to its double, evenly on a logarithmic scale: s, 2^(1/3) s, 2^(2/3) s (octaves)."""
    whole_sizes: bool = False
    """Sizes are cut to whole pixels as torchvision does (octaves)."""
    offset: float = 0.0
    """Where in its cell an anchor's centre lies, as a part of the cell: 0 = at its top left corner (R-CNN,
    RetinaNet), 0.5 = in its middle (SSD)."""
    priors: tuple[tuple[tuple[float, float], ...], ...] = ()
    """Width and height of the anchors at every position, for each level, input pixels (priors)."""
    spacing: tuple[float, ...] = ()
    """Pixels from one position to the next, for each level, in place of its stride (priors)."""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    """x1, y1, x2, y2 of each anchor as parts of the input (boxes); jobs.priors --priors.kind boxes finds some."""

    def __post_init__(self) -> None:
        require_typed("model.dense.anchors", self)
        require(
            0 < len(self.sizes) <= MAX_LISTED,
            "model.dense.anchors.sizes",
            self.sizes,
            f"at least one size, up to {MAX_LISTED}",
        )
        require(
            all(1e-3 <= s <= MAX_PIXEL for s in self.sizes),
            "model.dense.anchors.sizes",
            self.sizes,
            "numbers above 0, in pixels",
        )
        require(
            0 < len(self.ratios) <= MAX_LISTED and all(1e-3 <= r <= 1e3 for r in self.ratios),
            "model.dense.anchors.ratios",
            self.ratios,
            f"numbers above 0 (0.001 to 1000), up to {MAX_LISTED}",
        )
        require_between("model.dense.anchors.octave_steps", self.octave_steps, 1, MAX_LISTED)
        require_fraction("model.dense.anchors.offset", self.offset)
        self._check_priors()
        self._check_boxes()
        require(
            self.kind == "ratios" or not self.every_level,
            "model.dense.anchors.every_level",
            self.every_level,
            f"false where model.dense.anchors.kind is {self.kind}",
        )
        require(
            self.kind == "ratios" or not self.whole_sizes or min(self.sizes) >= 1,
            "model.dense.anchors.whole_sizes",
            self.whole_sizes,
            f"false with sizes below one pixel ({min(self.sizes)})",
        )

    def _check_priors(self) -> None:
        where = "model.dense.anchors"
        require(
            (self.kind == "priors") == (len(self.priors) > 0),
            f"{where}.priors",
            self.priors,
            "widths and heights for each level where model.dense.anchors.kind is priors, and none elsewhere",
        )
        require(
            len(self.priors) <= MAX_LISTED
            and all(0 < len(level) <= MAX_LISTED for level in self.priors)
            and all(1e-3 <= side <= MAX_PIXEL for level in self.priors for pair in level for side in pair),
            f"{where}.priors",
            self.priors,
            f"at least one pair of numbers above 0 for each level, in pixels, up to {MAX_LISTED} pairs",
        )
        require(
            not self.spacing or (len(self.spacing) == len(self.priors) and not self.fitted_strides),
            f"{where}.spacing",
            self.spacing,
            "one for each level of model.dense.anchors.priors, without fitted_strides; or none",
        )
        require(
            all(1e-3 <= step <= MAX_PIXEL for step in self.spacing),
            f"{where}.spacing",
            self.spacing,
            "numbers above 0, in pixels",
        )

    def _check_boxes(self) -> None:
        require(
            (self.kind == "boxes") == (len(self.boxes) > 0),
            "model.dense.anchors.boxes",
            f"{len(self.boxes)} boxes",
            "some boxes where model.dense.anchors.kind is boxes, and none elsewhere",
        )
        wrong = [box for box in self.boxes if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1)]
        require(
            not wrong and len(self.boxes) <= MAX_BOXES,
            "model.dense.anchors.boxes",
            wrong[0] if wrong else f"{len(self.boxes)} boxes",
            f"x1 < x2 and y1 < y2 from 0 to 1 of each, up to {MAX_BOXES:,} boxes",
        )

    @property
    def num_levels(self) -> int | None:
        """How many levels they are made for; None = any number."""
        if self.kind == "priors":
            return len(self.priors)
        if self.kind == "boxes":
            return 1
        return None if self.every_level else len(self.sizes)
