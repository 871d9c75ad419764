"""A dense head as YOLOv2's: convolutions, then class logits, a box and an objectness for each prior of each cell."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.layers.convolve import convolve
from maskrcnn_core.layers.normed_conv import normed_conv
from maskrcnn_core.model.dense.head import at_anchors, by_anchor
from maskrcnn_core.model.trunks.darknet import LEAK
from maskrcnn_core.structures import DenseOutputs


class CellHead(nn.Module):
    """3x3 convolutions with leaky ReLU, the same on all levels, then 1x1 predictors.

    Args:
        channels: of every level.
        width: of the convolutions.
        num_anchors: priors of a cell.
        num_convs: convolutions; without any the predictors lie on the map itself.
        num_classes: K, logits of a prior.
        norm: of the convolutions, as `normed_conv`.
    """

    def __init__(
        self, channels: int, width: int, num_anchors: int, num_convs: int, num_classes: int, *, norm: str
    ) -> None:
        super().__init__()
        self.num_anchors, self.num_classes = num_anchors, num_classes
        self.convs = nn.ModuleList(
            normed_conv(channels if index == 0 else width, width, 3, norm) for index in range(num_convs)
        )
        width = width if num_convs else channels
        self.logits = nn.Conv2d(width, num_anchors * num_classes, 1)
        self.deltas = nn.Conv2d(width, num_anchors * 4, 1)
        self.objectness = nn.Conv2d(width, num_anchors, 1)
        for predictor in (self.logits, self.deltas, self.objectness):
            nn.init.normal_(predictor.weight, std=0.01)
            assert predictor.bias is not None
            nn.init.zeros_(predictor.bias)

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """See `DenseHead.at`."""
        return at_anchors(self(maps), index)

    def forward(self, maps: Sequence[Tensor]) -> DenseOutputs:
        """See `DenseHead.__call__`."""
        logits, deltas, objectness = [], [], []
        for features in maps:
            for conv in self.convs:
                features = functional.leaky_relu(convolve(conv, features), LEAK, inplace=True)
            logits.append(by_anchor(convolve(self.logits, features), self.num_classes))
            deltas.append(by_anchor(convolve(self.deltas, features), 4))
            objectness.append(by_anchor(convolve(self.objectness, features), 1)[..., 0])
        return DenseOutputs(logits, deltas, objectness)
