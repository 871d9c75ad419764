"""A dense head with a tower of convolutions for classes and one for boxes (RetinaNet, section 4; FCOS)."""

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from maskrcnn_core.layers.convolve import convolve
from maskrcnn_core.layers.normed_conv import normed_conv
from maskrcnn_core.model.dense.head import at_anchors, by_anchor
from maskrcnn_core.structures import DenseOutputs


class TowerHead(nn.Module):
    """Two towers of 3x3 convolutions, the same on all levels, then 3x3 predictors.

    Args:
        channels: of every level and convolution.
        num_anchors: at each position.
        num_convs: of each tower.
        num_classes: K, logits of an anchor.
        norm: "none" or "group", after each convolution of the towers.
        norm_bias: these convolutions have a bias although a norm follows.
        objectness: also a predictor of one number an anchor, on the tower of the boxes.
        prior: what every class score is at first.
    """

    def __init__(
        self,
        channels: int,
        num_anchors: int,
        num_convs: int,
        num_classes: int,
        *,
        norm: str = "none",
        norm_bias: bool = False,
        objectness: bool = False,
        prior: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_anchors, self.num_classes = num_anchors, num_classes

        def tower() -> nn.ModuleList:
            bias = norm == "none" or norm_bias
            convs = (normed_conv(channels, channels, 3, norm, bias=bias, least_in_group=2) for _ in range(num_convs))
            return nn.ModuleList(convs)

        self.class_convs, self.box_convs = tower(), tower()
        self.logits = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.deltas = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        self.objectness = nn.Conv2d(channels, num_anchors, 3, padding=1) if objectness else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Or the many easy negatives would drown everything at first.
        nn.init.constant_(cast(Tensor, self.logits.bias), -math.log((1 - prior) / prior))

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """See `DenseHead.at`."""
        return at_anchors(self(maps), index)

    def forward(self, maps: Sequence[Tensor]) -> DenseOutputs:
        """See `DenseHead.__call__`."""
        logits, deltas, objectness = [], [], []
        for features in maps:
            # The towers are the same for every level.
            for_classes = for_boxes = features
            for conv in self.class_convs:
                for_classes = convolve(conv, for_classes, relu=True)
            for conv in self.box_convs:
                for_boxes = convolve(conv, for_boxes, relu=True)
            logits.append(by_anchor(convolve(self.logits, for_classes), self.num_classes))
            deltas.append(by_anchor(convolve(self.deltas, for_boxes), 4))
            if self.objectness is not None:
                objectness.append(by_anchor(convolve(self.objectness, for_boxes), 1)[..., 0])
        return DenseOutputs(logits, deltas, objectness if self.objectness is not None else None)
