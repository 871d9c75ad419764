"""A dense head as OverFeat's: a classifier of windows and a regressor of their boxes, run as convolutions."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.layers.convolve import convolve
from maskrcnn_core.model.dense.head import at_anchors, by_anchor
from maskrcnn_core.structures import DenseOutputs


class WindowHead(nn.Module):
    """Layers that see a window of `pool * cells` x `pool * cells` cells of the map, at every cell (OverFeat: Sermanet
    et al., ICLR 2014, sections 3.3 to 4.2).

    The window's cells are pooled by `pool`, and fully connected layers see the `cells` x `cells` results. The paper
    pools at all pool * pool offsets, runs the layers on each result, and interleaves what comes out. That is a maximum
    around every cell, and a convolution that takes every `pool`-th of these: the same numbers, at once. Unlike the
    paper's, windows also hang over the border, where the map goes on with zeros; so every cell of the map has one.

    Args:
        channels: of every level.
        pool: side of a pooled cell, cells of the map.
        cells: side of the window, pooled cells.
        num_classes: K, logits of a window.
        widths: of the classifier's layers before its output, the first of which sees the window.
        box_widths: of the regressor's.
        dropout: share of what goes into the outputs that training drops.
    """

    def __init__(
        self,
        channels: int,
        pool: int,
        cells: int,
        num_classes: int,
        *,
        widths: Sequence[int],
        box_widths: Sequence[int],
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.pool, self.num_classes, self.dropout = pool, num_classes, dropout
        # Cells of the window left of and above its own cell, and right of and below it.
        self.reach = ((pool * cells - 1) // 2, pool * cells // 2)
        self.class_layers = _layers(channels, pool, cells, widths)
        self.box_layers = _layers(channels, pool, cells, box_widths)
        self.logits = nn.Conv2d(widths[-1], num_classes, 1)
        self.deltas = nn.Conv2d(box_widths[-1], 4, 1)
        for predictor in (self.logits, self.deltas):
            nn.init.normal_(predictor.weight, std=0.01)
            nn.init.zeros_(cast(Tensor, predictor.bias))

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """See `DenseHead.at`."""
        return at_anchors(self(maps), index)

    def forward(self, maps: Sequence[Tensor]) -> DenseOutputs:
        """See `DenseHead.__call__`; one anchor at each cell."""
        logits, deltas = [], []
        for features in maps:
            # The maximum of the pooled cell that begins at each cell, over the border too.
            seen = functional.pad(features, self.reach * 2)
            pooled = functional.max_pool2d(seen, self.pool, stride=1)
            classes, boxes = (self._run(layers, pooled) for layers in (self.class_layers, self.box_layers))
            logits.append(by_anchor(convolve(self.logits, classes), self.num_classes))
            deltas.append(by_anchor(convolve(self.deltas, boxes), 4))
        return DenseOutputs(logits, deltas)

    def _run(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        for layer in layers:
            x = convolve(layer, x, relu=True)
        return functional.dropout(x, self.dropout, self.training)


def _layers(channels: int, pool: int, cells: int, widths: Sequence[int]) -> nn.ModuleList:
    """Fully connected layers as convolutions: the first takes every `pool`-th cell."""
    layers = nn.ModuleList()
    for out in widths:
        first = len(layers) == 0
        conv = nn.Conv2d(channels, out, cells if first else 1, dilation=pool if first else 1)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.zeros_(cast(Tensor, conv.bias))
        layers.append(conv)
        channels = out
    return layers
