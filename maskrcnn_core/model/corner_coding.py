"""Codes of boxes that say directly where the corners are: MultiBox's and OverFeat's."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CornerCoding:
    """How far each edge is from the reference's, as a part of the input (DeepMultiBox: Erhan et al., CVPR 2014,
    sections 3.1 and 3.3). An edge never crosses the opposite one.

    Attributes:
        side: of the input, pixels.
    """

    side: float

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """See `BoxCoding`."""
        return (boxes - references) / self.side

    def decode(self, outputs: Tensor, references: Tensor) -> Tensor:
        """See `BoxCoding`."""
        return _in_order(references + outputs * self.side)


@dataclass(frozen=True)
class WindowCoding:
    """How far each edge is from the window's, which is the reference, as a part of the window's side: edges relative to
    the window, as OverFeat's regressor says them (Sermanet et al., ICLR 2014, section 4.2), with the window itself as
    zeros. An edge never crosses the opposite one."""

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """See `BoxCoding`."""
        return (boxes - references) / _sides(references)

    def decode(self, outputs: Tensor, references: Tensor) -> Tensor:
        """See `BoxCoding`."""
        return _in_order(references + outputs * _sides(references))


def _sides(boxes: Tensor) -> Tensor:
    """[..., 4] width, height, width, height."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return torch.cat((sides, sides), dim=-1)


def _in_order(boxes: Tensor) -> Tensor:
    """[..., 4] of any corners; those whose edges cross become empty, at the middle between the two."""
    middle = 0.5 * (boxes[..., :2] + boxes[..., 2:])
    return torch.cat((torch.minimum(boxes[..., :2], middle), torch.maximum(boxes[..., 2:], middle)), dim=-1)
