"""MobileNet (Howard et al., 2017, table 1): a convolution, then thirteen pairs of a depthwise and a 1x1 convolution."""

from torch import nn

from maskrcnn_core.model.trunks.sequential import SequentialTrunk

# Width of the 1x1 convolution of each pair, and the stride of its depthwise one.
_PAIRS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
MOBILENET_V1 = "mobilenet_v1"
"""Its name."""
_STEM = 32
# The last layer of stem, C2, C3, C4, C5.
_STAGE_ENDS = (2, 6, 10, 22, 26)


def mobilenet_v1_trunk() -> SequentialTrunk:
    """The trunk with random weights: each convolution with batch norm and ReLU6."""
    layers = [_layer(3, _STEM, 3, 2)]
    width = _STEM
    for out, stride in _PAIRS:
        layers += [_layer(width, width, 3, stride, groups=width), _layer(width, out, 1, 1)]
        width = out
    return SequentialTrunk(nn.Sequential(*layers), _STAGE_ENDS)


def _layer(in_channels: int, out_channels: int, side: int, stride: int, *, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, side, stride=stride, padding=side // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))
