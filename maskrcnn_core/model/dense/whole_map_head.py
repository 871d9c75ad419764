"""A dense head as YOLOv1's: fully connected layers see the whole map, and say what is in each of its cells."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.dense.head import at_anchors
from maskrcnn_core.model.trunks.darknet import LEAK
from maskrcnn_core.structures import DenseOutputs


class WholeMapHead(nn.Module):
    """A locally connected layer or none, fully connected ones, then class values of each cell, and a box and a
    confidence of each of its anchors; the values of a cell are those of all its anchors (YOLOv1, section 2).

    Args:
        channels: of the map.
        grid: cells along a side of the map.
        num_anchors: boxes of a cell.
        num_classes: K.
        local: width of a locally connected 3x3 layer on the map, as Darknet has it in place of the first fully
            connected one; 0 = none.
        widths: of the fully connected layers before the predictors.
        dropout: share of what goes into the predictors that training drops.
    """

    def __init__(
        self,
        channels: int,
        grid: int,
        num_anchors: int,
        num_classes: int,
        *,
        local: int = 0,
        widths: Sequence[int] = (),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.grid, self.num_anchors, self.num_classes, self.dropout = grid, num_anchors, num_classes, dropout
        self.local = LocallyConnected2d(channels, local, grid) if local else None
        width = (local or channels) * grid**2
        self.layers = nn.ModuleList()
        for out in widths:
            self.layers.append(nn.Linear(width, out))
            width = out
        cells = grid**2
        self.logits = nn.Linear(width, cells * num_classes)
        self.objectness = nn.Linear(width, cells * num_anchors)
        self.deltas = nn.Linear(width, cells * num_anchors * 4)
        for predictor in (self.logits, self.objectness, self.deltas):
            nn.init.normal_(predictor.weight, std=0.01)
            nn.init.zeros_(predictor.bias)
        nn.init.constant_(self.deltas.bias, 0.5)  # the middle of the cell, a quarter of the image

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """See `DenseHead.at`."""
        return at_anchors(self(maps), index)

    def forward(self, maps: Sequence[Tensor]) -> DenseOutputs:
        """One level [N, C, grid, grid] -> outputs of grid * grid * num_anchors anchors.

        Raises:
            ConfigError: the map has another size, so that the input has.
        """
        (x,) = maps
        if x.shape[2:] != (self.grid, self.grid):
            raise ConfigError(
                f"model.dense.head.kind: got whole_map, which is made for maps of {self.grid} x {self.grid} cells, and "
                f"an input whose map has {x.shape[2]} x {x.shape[3]}; set model.input.fit to square or letterbox, and "
                "leave model.input.short_side as it was in training"
            )
        if self.local is not None:
            x = functional.leaky_relu(self.local(x), LEAK)
        x = x.flatten(1)
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), LEAK)
        x = functional.dropout(x, self.dropout, self.training)
        # The class values of a cell for each of its anchors.
        logits = self.logits(x).unflatten(1, (-1, 1, self.num_classes)).expand(-1, -1, self.num_anchors, -1)
        return DenseOutputs([logits.flatten(1, 2)], [self.deltas(x).unflatten(1, (-1, 4))], [self.objectness(x)])


class LocallyConnected2d(nn.Module):
    """A 3x3 convolution that keeps height and width, with weights of their own at each cell.

    Args:
        in_channels, out_channels: widths.
        grid: cells along a side.
    """

    def __init__(self, in_channels: int, out_channels: int, grid: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(grid**2, out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels, grid**2))
        nn.init.normal_(self.weight, std=(2 / (9 * in_channels)) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, grid, grid] -> [N, out_channels, grid, grid]."""
        # What each cell sees: [cells, N, C * 9]; times its weights [cells, C * 9, out].
        seen = functional.unfold(x, 3, padding=1).permute(2, 0, 1)
        made = torch.matmul(seen, self.weight.flatten(2).transpose(1, 2))
        output: Tensor = (made.permute(1, 2, 0) + self.bias).unflatten(2, x.shape[2:])
        return output
