"""How the four outputs of an anchor or a region say where its box is.

It stands beside the stages, because both of them use it.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from maskrcnn_core.boxes import decode_deltas, encode_deltas


class BoxCoding(Protocol):
    """A code of boxes relative to references (anchors or proposals), both in input pixels."""

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Boxes [..., 4] -> the outputs [..., 4] that stand for them."""
        ...

    def decode(self, outputs: Tensor, references: Tensor) -> Tensor:
        """The inverse of `encode`."""
        ...


@dataclass(frozen=True)
class DeltaCoding:
    """Shift of the centre and logarithm of the sides, in units of the reference (R-CNN, appendix C).

    Attributes:
        weights: factors of dx, dy, dw, dh.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """See `BoxCoding`."""
        return encode_deltas(boxes, references, self.weights)

    def decode(self, outputs: Tensor, references: Tensor) -> Tensor:
        """See `BoxCoding`."""
        return decode_deltas(outputs, references, self.weights)


@dataclass(frozen=True)
class EdgeCoding:
    """Distances of the left, top, right and bottom edge from the reference's centre, in units of its width and height
    (FCOS, Eq. 1). An edge never lies on the other side of the centre."""

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """See `BoxCoding`; negative where the centre lies outside of the box."""
        centres = 0.5 * (references[..., :2] + references[..., 2:])
        sides = references[..., 2:] - references[..., :2]
        return torch.cat(((centres - boxes[..., :2]) / sides, (boxes[..., 2:] - centres) / sides), dim=-1)

    def decode(self, outputs: Tensor, references: Tensor) -> Tensor:
        """See `BoxCoding`."""
        centres = 0.5 * (references[..., :2] + references[..., 2:])
        sides = references[..., 2:] - references[..., :2]
        distances = outputs.clamp(min=0)
        return torch.cat((centres - distances[..., :2] * sides, centres + distances[..., 2:] * sides), dim=-1)
