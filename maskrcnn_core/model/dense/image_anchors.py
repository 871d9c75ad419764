"""Anchors that have their places in the image, rather than at the positions of a map (MultiBox's priors)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageAnchors:
    """Boxes of the whole image, once (DeepMultiBox: Erhan et al., CVPR 2014, section 3.3: means of the training boxes).

    Attributes:
        boxes: x1, y1, x2, y2 of each, as parts of the input.
        side: of the input, pixels.
    """

    boxes: tuple[tuple[float, float, float, float], ...]
    side: float

    @property
    def offset(self) -> float:
        """See `AnchorRule`."""
        return 0.0

    def per_level(self, num_levels: int) -> tuple[int, ...]:
        """See `AnchorRule`."""
        return (len(self.boxes),) * num_levels

    def bases(self, num_levels: int) -> list[Tensor]:
        """See `AnchorRule`: in the order given."""
        return [self.side * torch.tensor(self.boxes, dtype=torch.float32).reshape(-1, 4)] * num_levels

    def positions(self, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """See `AnchorRule`: one, whatever the map."""
        return [(1, 1)] * len(shapes)

    def steps(
        self, strides: Sequence[int], shapes: Sequence[tuple[int, int]], input_shape: tuple[int, int]
    ) -> list[tuple[float, float]]:
        """See `AnchorRule`: there is no next position."""
        return [(0.0, 0.0)] * len(strides)
