"""A pyramid that goes on downwards: the trunk's own maps, and smaller ones made from the last of them (SSD: Liu et al.,
ECCV 2016, section 2.1; SSDLite: Sandler et al., MobileNetV2, CVPR 2018, section 6.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.layers.convolve import convolve
from maskrcnn_core.layers.frozen_norm import FrozenAffineConv2d
from maskrcnn_core.layers.normed_conv import normed_conv
from maskrcnn_core.layers.tensorflow_padding import TensorFlowPad

# Kernel, stride and padding of each step of a tail.
_STEPS = {"stride": (3, 2, 1), "valid": (3, 1, 0), "even": (4, 1, 1), "keep": (3, 1, 1)}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu, "relu6": functional.relu6}


@dataclass(frozen=True)
class TailRule:
    """What a tail is made of (attributes as in `PyramidConfig`, without `tail_`).

    Attributes:
        tensorflow: convolutions with stride 2 are padded as TensorFlow pads them.
    """

    channels: tuple[int, ...]
    steps: tuple[str, ...]
    depthwise: bool = False
    activation: str = "relu"
    l2_scale: float = 0.0
    tensorflow: bool = False


class TailPyramid(nn.Module):
    """Maps of the trunk as they are, each of its own width, then one more for each step of the tail.

    Args:
        in_channels, strides: of the trunk's maps that are used, finest first.
        rule: of the tail.
        maps_used: which of the trunk's maps they are.
        norm: of the tail's convolutions, as `normed_conv`.

    Attributes:
        level_channels, strides: of the levels; a step without stride keeps that of the level before.
        channels: of the finest level.
        num_roi_levels: 1: regions are cut from the finest level.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        rule: TailRule,
        *,
        strides: Sequence[int],
        maps_used: Sequence[int],
        norm: str = "none",
    ) -> None:
        super().__init__()
        self.l2_norm = ScaledL2Norm(in_channels[0], rule.l2_scale) if rule.l2_scale > 0 else None
        self.level_channels = (*in_channels, *rule.channels)
        below = (in_channels[-1], *rule.channels)[: len(rule.channels)]
        self.tail = nn.ModuleList(
            TailBlock(narrow, wide, step, rule, norm)
            for narrow, wide, step in zip(below, rule.channels, rule.steps, strict=True)
        )
        self.strides: tuple[int, ...] = tuple(strides)
        for step in rule.steps:
            self.strides += (self.strides[-1] * _STEPS[step][1],)
        self.channels, self.num_roi_levels = in_channels[0], 1
        self._maps_used = tuple(maps_used)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The trunk's maps -> levels, each [N, level_channels, H_l, W_l]."""
        levels = [maps[index] for index in self._maps_used]
        below = levels[-1]
        if self.l2_norm is not None:
            levels[0] = self.l2_norm(levels[0])
        for block in self.tail:
            below = block(below)
            levels.append(below)
        return levels


class TailBlock(nn.Module):
    """A 1x1 convolution to half the width, then the step's convolution.

    Args:
        step: "stride", "valid", "even" or "keep", see `PyramidConfig.tail_steps`.
        rule: where `depthwise`, the step's convolution is a depthwise one, with a 1x1 convolution behind it.
        norm: as `TailPyramid`.
    """

    def __init__(self, in_channels: int, out_channels: int, step: str, rule: TailRule, norm: str) -> None:
        super().__init__()
        middle, (self.kernel, stride, self.padding) = out_channels // 2, _STEPS[step]
        self.activation = rule.activation
        self.pad = TensorFlowPad(self.kernel, stride) if rule.tensorflow and stride > 1 else None
        padding = 0 if self.pad is not None else self.padding
        self.reduce = normed_conv(in_channels, middle, 1, norm, least_in_group=2)
        groups, wide = (middle, middle) if rule.depthwise else (1, out_channels)
        self.conv = normed_conv(
            middle, wide, self.kernel, norm, least_in_group=2, stride=stride, padding=padding, groups=groups
        )
        self.expand = normed_conv(middle, out_channels, 1, norm, least_in_group=2) if rule.depthwise else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d | FrozenAffineConv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H', W']."""
        if min(x.shape[-2:]) + 2 * self.padding < self.kernel:
            height, width = x.shape[-2:]
            raise ConfigError(
                f"model.pyramid.tail_steps: a {self.kernel}x{self.kernel} convolution has to work on a map of {height} "
                f"x {width} cells; use a larger model.input.short_side, or a shorter tail"
            )
        activate = _ACTIVATIONS[self.activation]
        x = activate(convolve(self.reduce, x))
        x = activate(convolve(self.conv, x if self.pad is None else self.pad(x)))
        return x if self.expand is None else activate(convolve(self.expand, x))


class ScaledL2Norm(nn.Module):
    """Each position's vector divided by its length and multiplied by learned factors, one a channel (Liu et al.,
    ParseNet, 2015, section 3.3): the finest map of VGG has another scale than the others."""

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> same shape and type; computed in float32."""
        wide = functional.normalize(x.float(), dim=1) * self.weight.float()[:, None, None]
        return wide.to(x.dtype)
