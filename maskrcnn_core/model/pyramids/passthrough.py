"""YOLOv2's pyramid: one level, of C4 laid on the grid of C5 and of C5 (section 2, "Fine-Grained Features")."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.layers.convolve import convolve
from maskrcnn_core.layers.normed_conv import normed_conv
from maskrcnn_core.model.trunks.darknet import LEAK


def reorganise(x: Tensor, stride: int = 2) -> Tensor:
    """A map on a coarser grid with more channels, as Darknet's reorg layer computes it.

    That is no space-to-depth: Darknet reads the memory of [C, H, W] as [C / s^2, H s, W s], parts that into s^2 grids
    by row and column modulo s, stacks these, and reads the result as [C s^2, H / s, W / s]. Weights that were trained
    on it need just this order.

    Args:
        x: [N, C, H, W]; s^2 divides C, s divides H and W.
        stride: s.

    Returns:
        [N, C * s^2, H / s, W / s].
    """
    number, channels, height, width = x.shape
    few, square = channels // stride**2, stride**2
    fine = x.reshape(number, few, height, stride, width, stride)  # rows and columns of the finer grid, parted by s
    parts = fine.permute(0, 3, 5, 1, 2, 4)  # [N, row offset, column offset, C / s^2, H, W]
    return parts.reshape(number, channels * square, height // stride, width // stride)


class Passthrough(nn.Module):
    """Convolutions on C5, a narrow one on C4, which is reorganised and comes first.

    Args:
        trunk_channels: of C4 and C5.
        stride: of C5.
        channels: of the two 3x3 convolutions on C5.
        narrow: of the 1x1 convolution on C4.
        norm: as `normed_conv`.

    Attributes:
        channels, level_channels, strides: of the level.
        num_roi_levels: 1.
    """

    def __init__(self, trunk_channels: tuple[int, int], stride: int, *, channels: int, narrow: int, norm: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(normed_conv(width, channels, 3, norm) for width in (trunk_channels[1], channels))
        self.lateral = normed_conv(trunk_channels[0], narrow, 1, norm)
        self.channels = 4 * narrow + channels
        self.level_channels: tuple[int, ...] = (self.channels,)
        self.strides: tuple[int, ...] = (stride,)
        self.num_roi_levels = 1

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The trunk's maps -> one level."""
        fine, coarse = maps[-2:]
        for conv in self.convs:
            coarse = leaky(conv, coarse)
        # C4 may be a row or a column short of twice C5.
        missing = [2 * long - short for long, short in zip(coarse.shape[2:], fine.shape[2:], strict=True)]
        fine = functional.pad(leaky(self.lateral, fine), (0, missing[1], 0, missing[0]))
        return [torch.cat((reorganise(fine), coarse), dim=1)]


def leaky(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution and Darknet's leaky ReLU."""
    return functional.leaky_relu(convolve(conv, x), LEAK, inplace=True)
