"""YOLO's codes of boxes: the centre within a cell of the map, the sides relative to a prior.

A reference is a prior laid around the middle of its cell.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# A box is at most this much larger than its prior, so that exp stays finite; as of R-CNN's deltas.
_MAX_LOG_SCALE = math.log(1000.0 / 16)
_EDGE = 1e-6


@dataclass(frozen=True)
class CellCoding:
    """Centre by a sigmoid, so that it stays in its cell; sides by an exponential (YOLOv2, section 2, "Direct location
    prediction").

    Attributes:
        cell: side of a cell, input pixels.
    """

    cell: int

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """See `BoxCoding`; a centre outside of the cell is taken to its edge."""
        places = (_centres(boxes) - _centres(references)) / self.cell + 0.5
        scales = torch.log(_sides(boxes).clamp(min=_EDGE) / _sides(references))
        return torch.cat((places.clamp(_EDGE, 1 - _EDGE).logit(), scales), dim=-1)

    def decode(self, outputs: Tensor, references: Tensor) -> Tensor:
        """See `BoxCoding`."""
        centres = _centres(references) + (outputs[..., :2].sigmoid() - 0.5) * self.cell
        half = 0.5 * outputs[..., 2:].clamp(max=_MAX_LOG_SCALE).exp() * _sides(references)
        return torch.cat((centres - half, centres + half), dim=-1)


@dataclass(frozen=True)
class RootCoding:
    """Centre as a part of the cell; square roots of the sides as parts of the prior's, which is the whole input
    (YOLOv1, section 2 and equation 3).

    Attributes:
        cell: side of a cell, input pixels.
    """

    cell: int

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """See `BoxCoding`."""
        places = (_centres(boxes) - _centres(references)) / self.cell + 0.5
        return torch.cat((places, (_sides(boxes).clamp(min=0) / _sides(references)).sqrt()), dim=-1)

    def decode(self, outputs: Tensor, references: Tensor) -> Tensor:
        """See `BoxCoding`."""
        centres = _centres(references) + (outputs[..., :2] - 0.5) * self.cell
        half = 0.5 * outputs[..., 2:].square() * _sides(references)
        return torch.cat((centres - half, centres + half), dim=-1)


def _centres(boxes: Tensor) -> Tensor:
    return 0.5 * (boxes[..., :2] + boxes[..., 2:])


def _sides(boxes: Tensor) -> Tensor:
    return boxes[..., 2:] - boxes[..., :2]
