"""Feature Pyramid Network (Lin et al., CVPR 2017, section 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class FPN(nn.Module):
    """Top-down pathway with lateral connections: C2 to C5 -> P2 to P6, all `channels` wide, at strides 4 to 64.

    P6 subsamples P5 by two (section 4.1, footnote 3). Coarse maps are enlarged by nearest neighbour to the finer
    map's size.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        for module in (*self.laterals, *self.outputs):
            nn.init.kaiming_uniform_(module.weight, a=1)
            nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """C2 to C5, each [N, C_l, H_l, W_l] -> P2 to P6, each [N, channels, H_l, W_l]."""
        merged = self.laterals[-1](maps[-1])
        pyramid = [self.outputs[-1](merged)]
        for level in range(len(maps) - 2, -1, -1):
            lateral = self.laterals[level](maps[level])
            merged = lateral + functional.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            pyramid.insert(0, self.outputs[level](merged))
        pyramid.append(pyramid[-1][..., ::2, ::2].contiguous(memory_format=_format_of(pyramid[-1])))
        return pyramid


def _format_of(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
