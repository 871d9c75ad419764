"""The dense head: a sliding window over every level, with outputs for each of its anchors."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from maskrcnn_core.structures import DenseOutputs


class DenseHead(Protocol):
    """A network over all levels, an `nn.Module` with the parameters `logits` and `deltas` for its predictors."""

    def __call__(self, maps: Sequence[Tensor]) -> DenseOutputs:
        """Levels [N, C, H_l, W_l] -> outputs of their A_l anchors, position-major as in `anchors.pyramid_anchors`."""
        ...

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """The same of some anchors only, with gradients.

        Args:
            maps: levels [N, C, H_l, W_l].
            index: [N, S] into the anchors of all levels.

        Returns:
            Logits [N, S, K], deltas [N, S, 4].
        """
        ...


def by_anchor(output: Tensor, width: int) -> Tensor:
    """A predictor's map [N, A * width, H, W] -> [N, H * W * A, width]: anchors of a position stand together."""
    return output.permute(0, 2, 3, 1).reshape(len(output), -1, width)


def at_anchors(outputs: DenseOutputs, index: Tensor) -> tuple[Tensor, Tensor]:
    """Of the outputs of all anchors those at `index` [N, S]: logits [N, S, K], deltas [N, S, 4]."""

    def picked(levels: Sequence[Tensor]) -> Tensor:
        every = torch.cat(list(levels), dim=1)
        return every.gather(1, index[..., None].expand(-1, -1, every.shape[2]))

    return picked(outputs.logits), picked(outputs.deltas)
