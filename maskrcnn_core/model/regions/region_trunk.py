"""The last stage of a trunk, or a whole one, as per-region computation.

So works Faster R-CNN on a ResNet's C4 (He et al., CVPR 2016, appendix A): conv5 runs on each region's features. In
R-CNN (Girshick et al., CVPR 2014) everything does, on each region's pixels.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from maskrcnn_core.model.trunks.trunk import Trunk


class RegionTrunk(nn.Sequential):
    """res5, or another network's last stage, applied to the features of each region and shared by the heads.

    Attributes:
        channels: width of its output.
        stride: size of its input over size of its output (14 x 14 -> 7 x 7: 2).
    """

    def __init__(self, layers: Iterable[nn.Module], channels: int, stride: int) -> None:
        super().__init__(*layers)
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """[R, C4, S, S], S a multiple of `stride` -> [R, channels, S / stride, S / stride]; R may be 0."""
        for layer in self:
            x = layer(x)
        return x


class RegionNetwork(nn.Module):
    """A whole trunk, applied to the pixels of each region and shared by the heads.

    Args:
        network: whose last map is what the heads see.

    Attributes:
        channels: width of its output.
        stride: size of its input over size of its output.
    """

    def __init__(self, network: Trunk) -> None:
        super().__init__()
        self.network = network
        self.channels, self.stride = network.channels[-1], network.strides[-1]

    def forward(self, x: Tensor) -> Tensor:
        """[R, 3, S, S] -> [R, channels, ceil(S / stride), ceil(S / stride)]; R may be 0."""
        features: Tensor = self.network(x)[-1]
        return features


def take_region_trunk(trunk: Trunk) -> RegionTrunk | None:
    """Move the last stage out of a trunk, which then ends at C4.

    Frozen stages stay frozen wherever they are.

    Returns:
        The stage; None where it has no weights. So it is with AlexNet and VGG, whose C5 is only a pool: the box head
        with its fully connected layers works on C4's regions, as in Fast R-CNN (Girshick, ICCV 2015).

    Raises:
        ConfigError: the trunk cannot be cut there.
    """
    channels, stride = trunk.channels[-1], trunk.strides[-1] // trunk.strides[-2]
    layers = trunk.take_last_stage()
    if not any(True for layer in layers for _ in layer.parameters()):
        return None
    return RegionTrunk(layers, channels, stride)
