"""Networks that are one chain of layers as trunks: AlexNet, VGG, MobileNet (torchvision's `features`).

Besides as they are, some of them in the forms that SSD has: VGG-16 with its fully connected layers as convolutions, and
MobileNets whose C4 is the wide map in the middle of the first block of stride 32.
"""

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.trunks.stages import STRIDES, stages_by_prefix

TORCHVISION_FORM = "mobilenet_v3_large_torchvision"
REDUCED_VGG = "vgg16_reduced"
_EXPANDED = {
    "mobilenet_v2_expanded": ("mobilenet_v2", 14),
    "mobilenet_v3_large_expanded": ("mobilenet_v3_large", 13),
    "mobilenet_v3_large_reduced": ("mobilenet_v3_large", 13),
}
"""The network, and its first block of stride 32."""
OWN_FORMS = (TORCHVISION_FORM, REDUCED_VGG, *_EXPANDED)
"""Names that are not torchvision's for what they are."""
_VGG_NAMES = tuple(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn"))
# The last layer of stem, C2, C3, C4, C5. The first block of MobileNetV2 and V3-large keeps stride 2: part of the stem.
_STAGE_ENDS = {
    "alexnet": (0, 1, 4, 11, 12),
    "mobilenet_v2": (1, 3, 6, 13, 18),
    "mobilenet_v3_small": (0, 1, 3, 8, 12),
    "mobilenet_v3_large": (1, 3, 6, 12, 16),
    TORCHVISION_FORM: (1, 3, 6, 12, 16),
    "mobilenet_v2_expanded": (1, 3, 6, 14, 19),
    "mobilenet_v3_large_expanded": (1, 3, 6, 13, 17),
    "mobilenet_v3_large_reduced": (1, 3, 6, 13, 17),
    REDUCED_VGG: (8, 15, 22, 34),
}
SEQUENTIAL_NAMES = ("alexnet", *_VGG_NAMES, *tuple(_STAGE_ENDS)[1:])


class SequentialTrunk(nn.Module):
    """C2 to C5 of a chain of layers.

    AlexNet (Krizhevsky et al., NIPS 2012) and VGG (Simonyan and Zisserman, ICLR 2015) have their last convolution at
    stride 16, where Fast R-CNN works: C4 is that map, and C5 is the pool after it.

    Args:
        features: the layers.
        stage_ends: index of the last layer of stem, C2, C3, C4, C5; what follows is left out.
        taps: indices of the layers whose outputs are the maps, by default those of `stage_ends` without the stem.
        strides, levels: of the taps.

    Attributes:
        channels, strides, levels: of the maps, finest first; level 2 is C2.
        rounds_input: its first layer is a convolution, which under autocast rounds its input.
    """

    def __init__(
        self,
        features: nn.Sequential,
        stage_ends: Sequence[int],
        *,
        taps: Sequence[int] | None = None,
        strides: Sequence[int] = STRIDES,
        levels: Sequence[int] = (2, 3, 4, 5),
    ) -> None:
        super().__init__()
        self.rounds_input = True
        self.features = features[: stage_ends[-1] + 1]
        self.stage_ends = tuple(stage_ends)
        self.taps = self.stage_ends[1:] if taps is None else tuple(taps)
        self.channels: tuple[int, ...] = tuple(_width(self.features[: tap + 1]) for tap in self.taps)
        self.strides: tuple[int, ...] = tuple(strides)
        self.levels: tuple[int, ...] = tuple(levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> the maps, each [N, channels, ceil(H / stride), ceil(W / stride)]."""
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps

    def stage_paths(self) -> list[list[str]]:
        """Paths of the layers of stem, C2, C3, C4, C5."""
        starts = (0, *(end + 1 for end in self.stage_ends[:-1]))
        return stages_by_prefix(
            self,
            [
                [f"features.{index}" for index in range(start, end + 1)]
                for start, end in zip(starts, self.stage_ends, strict=True)
            ],
        )

    def take_last_stage(self) -> list[nn.Module]:
        """Remove the last stage; its layers, in order.

        Raises:
            ConfigError: the maps are not those of the stages.
        """
        if self.taps != self.stage_ends[1:]:
            raise ConfigError(
                f"model.backbone.name: {TORCHVISION_FORM} has both its maps in the last stage, which cannot be taken "
                "off; use mobilenet_v3_large"
            )
        end = self.stage_ends[-2] + 1
        layers = list(self.features[end:])
        self.features = self.features[:end]
        self.stage_ends, self.taps = self.stage_ends[:-1], self.taps[:-1]
        self.channels, self.strides, self.levels = self.channels[:-1], self.strides[:-1], self.levels[:-1]
        return layers


def sequential_trunk(name: str, *, pretrained: bool) -> SequentialTrunk:
    """The trunk of one of `SEQUENTIAL_NAMES`, with random or torchvision's ImageNet weights."""
    if name == TORCHVISION_FORM:
        # What torchvision's fasterrcnn_mobilenet_v3_large_fpn gives to its FPN as stages 4 and 5: the first block of
        # stride 32 and the last layer.
        features = _features("mobilenet_v3_large", pretrained)
        return SequentialTrunk(features, _STAGE_ENDS[name], taps=(13, 16), strides=(32, 32), levels=(4, 5))
    if name == REDUCED_VGG:
        layers = [*_features("vgg16", pretrained)[:-1], *_convolutional_head()]
        return SequentialTrunk(nn.Sequential(*layers), _STAGE_ENDS[name], strides=(4, 8, 16), levels=(2, 3, 4))
    if name in _EXPANDED:
        return SequentialTrunk(_expanded(name, pretrained), _STAGE_ENDS[name])
    features = _features(name, pretrained)
    return SequentialTrunk(features, _STAGE_ENDS.get(name) or _vgg_stage_ends(features))


def _convolutional_head() -> list[nn.Module]:
    """VGG's fc6 and fc7 with a quarter of their width, as convolutions at stride 16; the fifth pool only blurs, and fc6
    takes every sixth of its cells (Liu et al., SSD, ECCV 2016, section 3; Chen et al., DeepLab, ICLR 2015)."""
    fc6, fc7 = nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.Conv2d(1024, 1024, 1)
    for conv in (fc6, fc7):
        nn.init.xavier_uniform_(conv.weight)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
    return [nn.MaxPool2d(3, stride=1, padding=1), fc6, nn.ReLU(inplace=True), fc7, nn.ReLU(inplace=True)]


def _expanded(name: str, pretrained: bool) -> nn.Sequential:
    """A MobileNet with the block that first has stride 32 cut behind its 1x1 expansion, which still has stride 16
    (Sandler et al., CVPR 2018, section 6.2; Howard et al., Searching for MobileNetV3, ICCV 2019, section 6.3).

    Raises:
        ConfigError: there are no weights of the network whose last layers are halved.
    """
    network, cut = _EXPANDED[name]
    if name.endswith("_reduced"):
        if pretrained:
            raise ConfigError(
                f"model.backbone.pretrained: got true for {name}, of which there are no ImageNet weights; use false, "
                f"or {network}_expanded"
            )
        features: nn.Sequential = torchvision.models.get_model(network, weights=None, reduced_tail=True).features
    else:
        features = _features(network, pretrained)
    block = features[cut].conv if network == "mobilenet_v2" else features[cut].block
    assert isinstance(block, nn.Sequential)
    return nn.Sequential(*features[:cut], block[0], block[1:], *features[cut + 1 :])


def _features(name: str, pretrained: bool) -> nn.Sequential:
    if pretrained:
        features: nn.Sequential = torchvision.models.get_model(name, weights="DEFAULT").features
    elif name.startswith("mobilenet"):
        features = torchvision.models.get_model(name, weights=None).features
    else:
        # The heads of AlexNet and VGG have a hundred million weights that nobody will see: no values for them.
        with torch.device("meta"):
            network = torchvision.models.get_model(name, weights=None)
        features = network.features.to_empty(device=torch.empty(0).device)
        _initialise(features, fan_out=name.startswith("vgg"))
    return features


def _initialise(features: nn.Sequential, *, fan_out: bool) -> None:
    """torchvision's own rules: by outgoing connections for VGG, PyTorch's default for AlexNet."""
    for layer in features:
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            layer.reset_parameters()
        if isinstance(layer, nn.Conv2d) and fan_out:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def _vgg_stage_ends(features: nn.Sequential) -> tuple[int, ...]:
    """Five pools: each map but the last is what the next pool reads, the last is the fifth pool's output."""
    pools = [index for index, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    return (pools[1] - 1, pools[2] - 1, pools[3] - 1, pools[4] - 1, pools[4])


def _width(layers: nn.Sequential) -> int:
    """Channels that a chain of layers ends with: those of its last convolution."""
    return [module.out_channels for module in layers.modules() if isinstance(module, nn.Conv2d)][-1]
