"""A head without a tower: predictors of its own for each level, which may have any width (SSD: Liu et al., ECCV 2016,
section 2.1; SSDLite: Sandler et al., MobileNetV2, CVPR 2018, section 6.2)."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.layers.convolve import convolve
from maskrcnn_core.layers.normed_conv import normed_conv
from maskrcnn_core.model.dense.head import at_anchors, by_anchor
from maskrcnn_core.structures import DenseOutputs


class LevelHead(nn.Module):
    """Of each level a predictor of logits and one of deltas.

    Args:
        channels: of each level.
        num_anchors: at each position of each level.
        num_classes: K, logits of an anchor.
        kernel: side of the predictors.
        depthwise: a 3x3 depthwise convolution with a norm and ReLU6, and a 1x1 predictor behind it.
        norm: of those, as `normed_conv`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_anchors: Sequence[int],
        num_classes: int,
        *,
        kernel: int = 3,
        depthwise: bool = False,
        norm: str = "none",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes

        def predictors(width: int) -> nn.ModuleList:
            made = (
                DepthwisePredictor(c, a * width, norm) if depthwise else _predictor(c, a * width, kernel)
                for c, a in sizes
            )
            return nn.ModuleList(made)

        sizes = list(zip(channels, num_anchors, strict=True))
        self.logits, self.deltas = predictors(num_classes), predictors(4)

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """See `DenseHead.at`."""
        return at_anchors(self(maps), index)

    def forward(self, maps: Sequence[Tensor]) -> DenseOutputs:
        """See `DenseHead.__call__`."""
        return DenseOutputs(
            [by_anchor(convolve(conv, x), self.num_classes) for conv, x in zip(self.logits, maps, strict=True)],
            [by_anchor(convolve(conv, x), 4) for conv, x in zip(self.deltas, maps, strict=True)],
        )


class DepthwisePredictor(nn.Module):
    """3x3 depthwise, norm, ReLU6, 1x1: what stands for a 3x3 predictor at a ninth of its cost."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.depthwise = normed_conv(in_channels, in_channels, 3, norm, least_in_group=2, groups=in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)
        for parameter in (*self.depthwise.parameters(), self.pointwise.weight):
            if parameter.ndim == 4:
                nn.init.normal_(parameter, std=0.03)
        nn.init.zeros_(cast(Tensor, self.pointwise.bias))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H, W]."""
        return convolve(self.pointwise, functional.relu6(convolve(self.depthwise, x)))


def _predictor(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(cast(Tensor, conv.bias))
    return conv
