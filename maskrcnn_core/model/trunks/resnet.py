"""Residual networks as trunks: ResNet (He et al., CVPR 2016), ResNeXt (Xie et al., CVPR 2017), wide ResNet."""

from typing import Any, cast

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.layers.convolve import convolve, convolve_stem
from maskrcnn_core.model.trunks.stages import STRIDES, stages_by_prefix

RESNET_NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)


class ResNetTrunk(nn.Module):
    """C2 to C5 of a torchvision ResNet, ResNeXt or wide ResNet.

    Args:
        network: torchvision's; its classification head is left out.

    Attributes:
        channels, strides, levels: of the maps, finest first; level 2 is C2.
        rounds_input: its first layer is a convolution, which under autocast rounds its input.
    """

    def __init__(self, network: torchvision.models.ResNet) -> None:
        super().__init__()
        self.rounds_input = True
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.stages = nn.ModuleList([network.layer1, network.layer2, network.layer3, network.layer4])
        width = network.fc.in_features
        self.channels: tuple[int, ...] = (width // 8, width // 4, width // 2, width)
        self.strides: tuple[int, ...] = STRIDES
        self.levels: tuple[int, ...] = (2, 3, 4, 5)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> C2 to C5, each [N, channels, ceil(H / stride), ceil(W / stride)]."""
        x = _stem(self.stem, x)
        maps = []
        for stage in self.stages:
            for block in cast(nn.Sequential, stage):
                x = _block(block, x)
            maps.append(x)
        return maps

    def stage_paths(self) -> list[list[str]]:
        """Paths of the layers of stem, C2, C3, C4, C5."""
        return stages_by_prefix(self, [("stem",), *((f"stages.{index}",) for index in range(len(self.stages)))])

    def take_last_stage(self) -> list[nn.Module]:
        """Remove the last stage; its blocks, in order."""
        blocks = list(self.stages[-1].children())
        self.stages = self.stages[:-1]
        self.channels, self.strides, self.levels = self.channels[:-1], self.strides[:-1], self.levels[:-1]
        return blocks

    def move_stride_to_1x1(self) -> None:
        """Put the stride of each bottleneck into its first 1x1 convolution instead of the 3x3.

        So were the networks of the ResNet paper and the MSRA weights of Caffe and detectron2 (STRIDE_IN_1X1).

        Raises:
            ConfigError: the blocks have no 1x1 convolution.
        """
        for stage in self.stages:
            blocks: Any = stage.children()  # torchvision's own type, without annotations
            for block in blocks:
                if not hasattr(block, "conv3"):
                    raise ConfigError(
                        "model.backbone.stride_in_1x1: only bottleneck blocks have it (resnet50 and deeper, resnext); "
                        "set it to false"
                    )
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _stem(stem: nn.Module, x: Tensor) -> Tensor:
    """The stem's layers, convolution and ReLU in one where no norm lies between them."""
    conv, norm, _, pool = cast(nn.Sequential, stem)
    if not _are_nothing(norm):
        return cast(Tensor, stem(x))
    pooled: Tensor = pool(convolve_stem(conv, x))
    return pooled


def _block(block: nn.Module, x: Tensor) -> Tensor:
    """A residual block, each convolution with what follows it in one where no norm lies between them."""
    layers: Any = block
    if type(block) is Bottleneck and _are_nothing(block.bn1, block.bn2, block.bn3):
        inner = convolve(layers.conv2, convolve(layers.conv1, x, relu=True), relu=True)
        last = layers.conv3
    elif type(block) is BasicBlock and _are_nothing(block.bn1, block.bn2):
        inner = convolve(layers.conv1, x, relu=True)
        last = layers.conv2
    else:
        return cast(Tensor, block(x))
    shortcut = x
    if layers.downsample is not None:
        conv, norm = layers.downsample
        shortcut = norm(convolve(conv, x))
    return convolve(last, inner, relu=True, residual=shortcut)


def _are_nothing(*modules: object) -> bool:
    return all(type(module) is nn.Identity for module in modules)
