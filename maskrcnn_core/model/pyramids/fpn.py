"""Feature Pyramid Network (Lin et al., CVPR 2017, section 3), and the same without its top-down pathway."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.kernels.gpu.availability import use_kernels
from maskrcnn_core.layers.convolve import convolve
from maskrcnn_core.layers.frozen_norm import FrozenAffineConv2d
from maskrcnn_core.layers.normed_conv import normed_conv

Norm = Literal["none", "frozen_batch", "sync_batch", "group"]
Extra = Literal["max_pool", "none", "p6p7_on_p5", "p6p7_on_c5"]


class FPN(nn.Module):
    """Top-down pathway with lateral connections: C2 to C5 -> P2 to P6, all `channels` wide, at strides 4 to 64.

    P6 subsamples P5 by two (section 4.1, footnote 3). Coarse maps are enlarged by nearest neighbour to the finer
    map's size.

    Args:
        in_channels: widths of the maps that are used, finest first.
        channels: width of every level.
        strides: of the maps that are used.
        maps_used: which of the trunk's maps they are; None = all.
        norm: of every convolution, as `normed_conv`.
        extra: max_pool = one more level, the coarsest subsampled by two (for the dense stage only); p6p7_on_p5,
            p6p7_on_c5 = two more, by 3x3 convolutions with stride 2 from the coarsest level or from the trunk's map
            below it (RetinaNet, section 4, footnote 2), with a ReLU between them; none.
        top_down: false = no pathway: the pyramid that the network itself has, with the same convolutions on it
            (section 5.1.1, table 1d; the tutorial: 'The "native" in-network feature pyramid poses an inherent
            tradeoff').

    Attributes:
        channels, strides: of the levels; level_channels: `channels` for each of them.
        num_roi_levels: regions are cut from the first so many levels: not from the extra ones, and of two levels with
            one stride only from the first.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        strides: Sequence[int] = (4, 8, 16, 32),
        maps_used: Sequence[int] | None = None,
        norm: Norm = "none",
        extra: Extra = "max_pool",
        top_down: bool = True,
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(normed_conv(width, channels, 1, norm) for width in in_channels)
        self.outputs = nn.ModuleList(normed_conv(channels, channels, 3, norm) for _ in in_channels)
        self.coarse = nn.ModuleList()
        if extra in ("p6p7_on_p5", "p6p7_on_c5"):
            below = channels if extra == "p6p7_on_p5" else in_channels[-1]
            self.coarse.extend(nn.Conv2d(width, channels, 3, stride=2, padding=1) for width in (below, channels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | FrozenAffineConv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
        for module in self.coarse:
            nn.init.zeros_(cast(Tensor, module.bias))
        self.channels = channels
        num_extra = 1 if extra == "max_pool" else len(self.coarse)
        self.strides = (*strides, *(strides[-1] << step for step in range(1, num_extra + 1)))
        self.num_roi_levels = len(set(strides))
        self.level_channels = (channels,) * len(self.strides)
        self.top_down = top_down
        self.extra = extra
        self._maps_used = tuple(range(len(in_channels))) if maps_used is None else tuple(maps_used)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The trunk's maps, each [N, C_l, H_l, W_l] -> levels P2 to P6, each [N, channels, H_l, W_l]."""
        # 1x1 convolutions to one width.
        laterals = [
            convolve(lateral, maps[index]) for lateral, index in zip(self.laterals, self._maps_used, strict=True)
        ]
        # From the coarsest down each is added to the next finer one.
        if self.top_down:
            for level in range(len(laterals) - 2, -1, -1):
                laterals[level] = _merged(laterals[level], laterals[level + 1])
        # 3x3 convolutions, and the level above the coarsest.
        pyramid = [convolve(output, lateral) for output, lateral in zip(self.outputs, laterals, strict=True)]
        if self.extra == "max_pool":
            pyramid.append(pyramid[-1][..., ::2, ::2].contiguous(memory_format=_format_of(pyramid[-1])))
        if len(self.coarse) > 0:
            below = maps[self._maps_used[-1]] if self.extra == "p6p7_on_c5" else pyramid[-1]
            pyramid.append(convolve(self.coarse[0], below))
            pyramid.append(convolve(self.coarse[1], functional.relu(pyramid[-1])))
        return pyramid


def _merged(fine: Tensor, coarse: Tensor) -> Tensor:
    """The finer map plus the coarser one enlarged to its size, for inference or on a GPU written over the finer one."""
    size = fine.shape[-2:]
    if _fits_kernel(fine, coarse):
        from maskrcnn_core.kernels.gpu.top_down import add_enlarged_

        return add_enlarged_(fine, coarse)
    if torch.is_grad_enabled() or size != (2 * coarse.shape[-2], 2 * coarse.shape[-1]):
        with torch.autocast(fine.device.type, enabled=False):  # it would copy in float32 and back
            return fine + functional.interpolate(coarse, size=size, mode="nearest")
    # Each coarse cell is added to its 2 x 2 fine ones.
    blocks = fine.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    blocks += coarse[:, :, :, None, :, None]
    return fine


def _fits_kernel(fine: Tensor, coarse: Tensor) -> bool:
    return (
        fine.shape[-2:] == (2 * coarse.shape[-2], 2 * coarse.shape[-1])
        and fine.dtype == coarse.dtype
        and fine.numel() > 0
        and use_kernels(fine, "top_down")
        and fine.is_contiguous(memory_format=torch.channels_last)
    )


def _format_of(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
