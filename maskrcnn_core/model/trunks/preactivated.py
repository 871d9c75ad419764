"""A small residual network whose norms come before the convolutions, with the last stage dilated: that of OpenCV's
face detector.

Norm and ReLU before a convolution are those of He et al., Identity Mappings in Deep Residual Networks (ECCV 2016,
section 4.1): the map behind them is what both ways of a block read, and what an SSD takes. The sizes are those of
`res10_300x300_ssd_iter_140000`, as its description has them.
"""

from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.model.trunks.sequential import SequentialTrunk

PREACTIVATED_NAMES = ("resnet10_preactivated",)
# Width of the first convolution, of the second, stride and dilation of the blocks behind the first.
_BLOCKS = ((128, 128, 2, 1), (256, 256, 2, 1), (128, 256, 1, 2))
_STEM = 32
_STAGE_ENDS = (1, 3, 5, 9)


class CeilMaxPool(nn.Module):
    """A 3x3 maximum with stride 2 whose windows begin at the map's first cell, as Caffe's do: ceil(size / 2) cells."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, ceil(H / 2), ceil(W / 2)]."""
        height, width = x.shape[-2:]
        # Of an odd side the last cell begins a window of its own.
        padded = functional.pad(x, (0, 1 + width % 2, 0, 1 + height % 2), value=-float("inf"))
        return functional.max_pool2d(padded, 3, stride=2)


class PreactivatedBlock(nn.Module):
    """Two 3x3 convolutions, norm and ReLU between them, and the way around: a 1x1 convolution, or nothing.

    Args:
        in_channels, middle, out_channels: of its input and of the two convolutions.
        stride: of the first and of the way around.
        dilation: of the second.
        projected: whether the way around has a convolution.
    """

    def __init__(
        self, in_channels: int, middle: int, out_channels: int, stride: int, dilation: int, *, projected: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, middle, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False) if projected else None
        for conv in (self.conv1, self.conv2, self.shortcut):
            if conv is not None:
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W], behind norm and ReLU -> [N, C_out, H', W']."""
        around = x if self.shortcut is None else self.shortcut(x)
        inner = functional.relu(self.norm(self.conv1(x)))
        result: Tensor = self.conv2(inner) + around
        return result


def preactivated_trunk() -> SequentialTrunk:
    """The trunk with random weights: maps of 32, 128 and 256 channels at strides 4, 8 and 16."""
    first = nn.Conv2d(3, _STEM, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
    stem = nn.Sequential(first, nn.BatchNorm2d(_STEM), nn.ReLU())
    layers: list[nn.Module] = [stem, CeilMaxPool(), PreactivatedBlock(_STEM, _STEM, _STEM, 1, 1, projected=False)]
    width = _STEM
    for middle, out, stride, dilation in _BLOCKS:
        layers += [_norm_and_relu(width), PreactivatedBlock(width, middle, out, stride, dilation)]
        width = out
    layers.append(_norm_and_relu(width))
    return SequentialTrunk(nn.Sequential(*layers), _STAGE_ENDS, strides=(4, 8, 16), levels=(2, 3, 4))


def _norm_and_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
