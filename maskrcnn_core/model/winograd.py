"""3x3 convolution with four times fewer multiplications (Lavin and Gray, CVPR 2016: F(4x4, 3x3)).

Each 4x4 tile of the output is an inverse transform of a 6x6 elementwise product, summed over the channels, of the
transformed input tile and the transformed kernel. The sums over channels for all tiles are 36 matrix products, which a
grouped 1x1 convolution computes; the transforms are a few additions over whole arrays.

The interpolation points are 0, +-1, +-3/2 and infinity instead of the usual +-2: rounding errors are a quarter smaller
and all factors stay exact.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.model.buffers import POOL
from maskrcnn_core.model.onednn import convolution

_TILE = 4
_WINDOW = 6
_POINTS = (0.0, 1.0, -1.0, 1.5, -1.5)
_OUTER = _POINTS[3]
_TILES_AT_ONCE = 400  # so that the transformed tiles stay in the cache
# Where the bias goes: the product at the point 1 enters every output of a tile with factor 1.
_BIAS_ROW = 1 * _WINDOW + 1


def transform_kernel(weight: Tensor) -> Tensor:
    """[C_out, C_in, 3, 3] -> [36, C_out, C_in], computed in float64."""
    rows = []
    for point in _POINTS:
        scale = np.prod([point - other for other in _POINTS if other != point])
        rows.append([point**power / scale for power in range(3)])
    matrix = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)
    kernel = torch.einsum("ij,kcjl,ml->imkc", matrix, weight.double(), matrix)
    return kernel.flatten(0, 1).to(weight.dtype).contiguous()


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1, for inference in float32 on a CPU.

    Differs from the plain convolution by some 1e-5 of the largest output.

    Args:
        conv: its weights are copied.
    """

    kernel: Tensor
    shift: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        kernel = transform_kernel(conv.weight.detach())
        self.out_channels, self.in_channels = kernel.shape[1:]
        shift = kernel.new_zeros(len(kernel), self.out_channels)
        if conv.bias is not None:
            shift[_BIAS_ROW] = conv.bias.detach()
        self.register_buffer("kernel", kernel.view(-1, self.in_channels, 1, 1))
        self.register_buffer("shift", shift.flatten())

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H, W], channels last."""
        num_images, _, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1)
        output = POOL.empty((num_images, height, width, self.out_channels))
        tiles_down, tiles_across = -(-height // _TILE), -(-width // _TILE)
        rows = max(min(_TILES_AT_ONCE // tiles_across, tiles_down), 1)
        images = max(_TILES_AT_ONCE // (rows * tiles_across), 1) if rows == tiles_down else 1
        for first in range(0, num_images, images):
            for top in range(0, tiles_down, rows):
                down = min(rows, tiles_down - top)
                band = _band(pixels[first : first + images], top * _TILE, down * _TILE, tiles_across * _TILE)
                tiles = self._tiles(band, down, tiles_across)
                _place(tiles, output[first : first + images, top * _TILE : (top + down) * _TILE])
        return output.permute(0, 3, 1, 2)

    def _tiles(self, band: Tensor, down: int, across: int) -> Tensor:
        """[n, 4 down + 2, 4 across + 2, C_in] -> products [n, down, across, 6, 6, C_out]."""
        count, _, padded_width, channels = band.shape
        lines = POOL.empty((_WINDOW, count, down, padded_width, channels))
        _to_window([band[:, i : i + _TILE * down - 3 : _TILE] for i in range(_WINDOW)], list(lines))
        windows = POOL.empty((count, down, across, _WINDOW, _WINDOW, channels))
        columns = [lines[:, :, :, j : j + _TILE * across - 3 : _TILE] for j in range(_WINDOW)]
        _to_window(columns, [windows[..., j, :].permute(3, 0, 1, 2, 4) for j in range(_WINDOW)])
        flat = windows.view(1, 1, count * down * across, -1).permute(0, 3, 1, 2)
        products = convolution(flat, self.kernel, self.shift, groups=_WINDOW * _WINDOW)
        return products.permute(0, 2, 3, 1).view(count, down, across, _WINDOW, _WINDOW, self.out_channels)


def _band(pixels: Tensor, top: int, height: int, width: int) -> Tensor:
    """Rows top - 1 .. top + height and columns -1 .. width of [n, H, W, C], zero outside."""
    low, high = max(top - 1, 0), min(top + height + 1, pixels.shape[1])
    above, below = low - (top - 1), top + height + 1 - high
    return functional.pad(pixels[:, low:high], (0, 0, 1, width + 1 - pixels.shape[2], above, below))


def _place(products: Tensor, output: Tensor) -> None:
    """Inverse transform of [n, down, across, 6, 6, C] into the rows [n, <= 4 down, <= 4 across, C]."""
    count, down, across = products.shape[:3]
    channels = products.shape[-1]
    lines = POOL.empty((_TILE, _WINDOW, count, down, across, channels))
    _from_window([products[..., i, :, :].permute(3, 0, 1, 2, 4) for i in range(_WINDOW)], list(lines))
    whole = output.shape[1:3] == (down * _TILE, across * _TILE)
    place = output if whole else output.new_empty(count, down * _TILE, across * _TILE, channels)
    grid = place.view(count, down, _TILE, across, _TILE, channels)
    targets = [grid[..., j, :].permute(2, 0, 1, 3, 4) for j in range(_TILE)]
    _from_window([lines[:, j] for j in range(_WINDOW)], targets)
    if not whole:
        output.copy_(place[:, : output.shape[1], : output.shape[2]])


def _to_window(source: list[Tensor], target: list[Tensor]) -> None:
    """One axis of the input transform: six samples -> six values, one for each interpolation point."""
    inner, outer = 1.0, _OUTER * _OUTER
    even, odd = POOL.empty((2, *source[0].shape))
    torch.sub(source[4], source[2], alpha=outer, out=even)
    torch.sub(source[3], source[1], alpha=outer, out=odd)
    torch.add(even, odd, out=target[1])
    torch.sub(even, odd, out=target[2])
    torch.sub(source[4], source[2], alpha=inner, out=even)
    torch.sub(source[3], source[1], alpha=inner, out=odd)
    torch.add(even, odd, alpha=_OUTER, out=target[3])
    torch.sub(even, odd, alpha=_OUTER, out=target[4])
    for first, values in ((0, target[0]), (1, target[5])):
        torch.sub(source[first + 4], source[first + 2], alpha=inner + outer, out=values)
        values.add_(source[first], alpha=inner * outer)


def _from_window(source: list[Tensor], target: list[Tensor]) -> None:
    """One axis of the inverse transform: six values -> the four outputs of a tile."""
    inner_sum, inner_difference, outer_sum, outer_difference = POOL.empty((4, *source[0].shape))
    torch.add(source[1], source[2], out=inner_sum)
    torch.sub(source[1], source[2], out=inner_difference)
    torch.add(source[3], source[4], out=outer_sum)
    torch.sub(source[3], source[4], out=outer_difference)
    torch.add(inner_sum, outer_sum, out=target[0])
    target[0].add_(source[0])
    torch.add(inner_difference, outer_difference, alpha=_OUTER, out=target[1])
    torch.add(inner_sum, outer_sum, alpha=_OUTER**2, out=target[2])
    torch.add(inner_difference, outer_difference, alpha=_OUTER**3, out=target[3])
    target[3].add_(source[5])
