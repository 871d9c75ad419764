"""Which pictures a report shows."""

from dataclasses import dataclass

from maskrcnn_core.config.checks import require_between, require_fraction, require_positive, require_typed
from maskrcnn_core.config.limits import MAX_SIDE

_MAX_PICTURES = 100_000


@dataclass(frozen=True)
class PicturesConfig:
    """Which pictures a report shows, and how many."""

    min_score: float = 0.5
    """Detections from this score on count as found, and are drawn."""
    match_overlap: float = 0.5
    """Least IoU of a detection's box with an object of its category to be right."""
    per_gallery: int = 16
    """Most examples in each gallery; 0 = no pictures."""
    per_image: int = 2
    """Most examples of one image in a gallery."""
    side: int = 320
    """Longest side of a picture, pixels."""
    max_megabytes: float = 8.0
    """All pictures together take at most this much of the page, megabytes; what does not fit is left out."""

    def __post_init__(self) -> None:
        require_typed("pictures", self)
        require_between("pictures.per_gallery", self.per_gallery, 0, _MAX_PICTURES)
        require_between("pictures.side", self.side, 1, MAX_SIDE)
        for name in ("per_image", "max_megabytes"):
            require_positive(f"pictures.{name}", getattr(self, name))
        for name in ("min_score", "match_overlap"):
            require_fraction(f"pictures.{name}", getattr(self, name))
