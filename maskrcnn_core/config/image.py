"""How an image becomes the network's input."""

from dataclasses import dataclass
from typing import Literal

from maskrcnn_core.config.checks import require, require_between, require_typed
from maskrcnn_core.config.limits import MAX_PIXEL, MAX_SIDE


@dataclass(frozen=True)
class InputConfig:
    """How an image becomes the network's input."""

    short_side: int = 800
    """Length to which the shorter image side is resized, pixels; with fit square and letterbox both are."""
    long_side: int = 1333
    """Upper limit of the longer side after resizing, pixels; wins over short_side."""
    fit: Literal["aspect", "square", "letterbox"] = "aspect"
    """aspect = by one factor, within short_side and long_side; square = warped to short_side x short_side, whatever
    the aspect (SSD, and YOLO as its paper has it); letterbox = by one factor into the middle of such a square, with
    grey around it (darknet)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from each channel (in the order of `channels`), after division by 255 where `scale` is unit."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divides each channel after subtraction."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Channel order that the backbone expects."""
    scale: Literal["unit", "byte"] = "unit"
    """Pixel range before normalisation: unit = 0..1, byte = 0..255."""
    resize: Literal["float", "float_nearest", "antialias"] = "float"
    """float = bilinear on unrounded values, sizes rounded down (torchvision); float_nearest = the same, sizes
    rounded to the nearest (mmdetection); antialias = 8-bit bilinear with PIL's filter (detectron2)."""
    divisor: int = 32
    """Batches are padded to a multiple of this, pixels; 1 = only to the largest image (detectron2's C4 and DC5)."""

    def __post_init__(self) -> None:
        require_typed("model.input", self)
        require_between("model.input.short_side", self.short_side, 1, MAX_SIDE)
        require(
            self.short_side <= self.long_side <= MAX_SIDE,
            "model.input.long_side",
            self.long_side,
            f"at least model.input.short_side ({self.short_side}), at most {MAX_SIDE:,}",
        )
        require(all(abs(m) <= MAX_PIXEL for m in self.mean), "model.input.mean", self.mean, "values of pixels")
        require(
            all(1 / MAX_PIXEL <= s <= MAX_PIXEL for s in self.std),
            "model.input.std",
            self.std,
            "numbers above 0, as of pixels",
        )
        require(
            self.divisor == 1 or (0 < self.divisor <= MAX_SIDE and self.divisor % 32 == 0),
            "model.input.divisor",
            self.divisor,
            f"a positive multiple of 32 up to {MAX_SIDE:,}, or 1 for no padding",
        )
