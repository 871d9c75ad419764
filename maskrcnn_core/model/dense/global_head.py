"""A dense head as MultiBox's: fully connected layers see the whole image, and say of a set of boxes what is in each."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.dense.head import at_anchors
from maskrcnn_core.structures import DenseOutputs


class GlobalHead(nn.Module):
    """Fully connected layers with ReLU, then the logits and deltas of all anchors of the image (DeepMultiBox: Erhan et
    al., CVPR 2014, section 3.1).

    Args:
        channels: of the map.
        grid: cells along a side of the map.
        num_anchors: of the image.
        num_classes: K, logits of an anchor.
        widths: of the fully connected layers before the predictors.
        dropout: share of what goes into the predictors that training drops.
        prior: what every class score is at first.
    """

    def __init__(
        self,
        channels: int,
        grid: int,
        num_anchors: int,
        num_classes: int,
        *,
        widths: Sequence[int] = (),
        dropout: float = 0.5,
        prior: float = 0.01,
    ) -> None:
        super().__init__()
        self.grid, self.num_classes, self.dropout = grid, num_classes, dropout
        width = channels * grid**2
        self.layers = nn.ModuleList()
        for out in widths:
            self.layers.append(nn.Linear(width, out))
            width = out
        self.logits = nn.Linear(width, num_anchors * num_classes)
        self.deltas = nn.Linear(width, num_anchors * 4)
        for predictor in (self.logits, self.deltas):
            nn.init.normal_(predictor.weight, std=0.01)
            nn.init.zeros_(predictor.bias)
        nn.init.constant_(self.logits.bias, -math.log((1 - prior) / prior))

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """See `DenseHead.at`."""
        return at_anchors(self(maps), index)

    def forward(self, maps: Sequence[Tensor]) -> DenseOutputs:
        """One level [N, C, grid, grid] -> outputs of num_anchors anchors.

        Raises:
            ConfigError: the map has another size, so that the input has.
        """
        (x,) = maps
        if x.shape[2:] != (self.grid, self.grid):
            raise ConfigError(
                f"model.dense.head.kind: got global, which is made for maps of {self.grid} x {self.grid} cells, and an "
                f"input whose map has {x.shape[2]} x {x.shape[3]}; set model.input.fit to square or letterbox, and "
                "leave model.input.short_side as it was in training"
            )
        x = x.flatten(1)
        for layer in self.layers:
            x = functional.relu(layer(x))
        x = functional.dropout(x, self.dropout, self.training)
        logits = self.logits(x).unflatten(1, (-1, self.num_classes))
        return DenseOutputs([logits], [self.deltas(x).unflatten(1, (-1, 4))])
