"""3x3 convolution with four times fewer multiplications (Lavin and Gray, CVPR 2016: F(4x4, 3x3)).

Each 4x4 tile of the output is an inverse transform of a 6x6 elementwise product, summed over the channels, of the
transformed input tile and the transformed kernel. The sums over channels for all tiles are 36 matrix products, which
oneDNN computes; `kernels/cpu/winograd_transforms.py` has the transforms. `winograd_training.py` has the gradients.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.kernels.cpu.availability import use_loops
from maskrcnn_core.layers.buffers import POOL
from maskrcnn_core.layers.thread_team import in_pieces

# What `winograd_transforms` has too, which cannot be imported where there is no Numba.
_TILE = 4
_POSITIONS = 36
_LANES = 16
_POINTS = (0.0, 1.0, -1.0, 1.5, -1.5)
# Narrower ones spend their time in the transforms (bfloat16's plain convolutions are twice as fast as float32's); of
# wider ones the transformed kernel takes more than 40 MB.
_CHANNELS = {torch.float32: range(64, 513), torch.bfloat16: range(128, 513)}
# Tiles times channels in times channels out below which the 36 products cost more in calls than they save in
# arithmetic; in training kernels are transformed at each call, and gradients of few tiles are slow.
_LEAST_WORK = {torch.float32: 1 << 21, torch.bfloat16: 1 << 22}
_LEAST_WORK_TRAINING, _FEWEST_TILES_TRAINING = 1 << 23, 150
# Values of one position that are multiplied at once: enough for products at full rate, and of all positions few enough
# for the cache of a core.
_VALUES_AT_ONCE = 100 << 10


@cache
def kernel_matrix() -> Tensor:
    """[36, 9] float64: a kernel's nine weights -> its values at the 36 positions."""
    rows = []
    for point in _POINTS:
        scale = np.prod([point - other for other in _POINTS if other != point])
        rows.append([point**power / scale for power in range(3)])
    matrix = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)
    return torch.kron(matrix, matrix)


def transform_kernel(weight: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """[C_out, C_in, 3, 3] -> [36, C_out, C_in] float32, computed in `dtype`."""
    flat = weight.to(dtype).permute(2, 3, 0, 1).reshape(9, -1)
    values = torch.mm(kernel_matrix().to(dtype), flat, out=POOL.empty((_POSITIONS, flat.shape[1]), dtype))
    return values.float().view(_POSITIONS, *weight.shape[:2])


def pays_in_training(shape: Sequence[int], weight: Tensor) -> bool:
    """Whether a 3x3 convolution of stride 1 and padding 1, of float32 maps [N, C_in, H, W] with this weight, and its
    gradients should be computed so."""
    images, _, height, width = shape
    tiles = _tiles(images, height, width)
    large = tiles >= _FEWEST_TILES_TRAINING and tiles * weight.shape[0] * weight.shape[1] >= _LEAST_WORK_TRAINING
    return large and has_a_width(weight, torch.float32)


def has_a_width(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether numbers of channels [C_out, C_in, 3, 3] are worth it for large maps of a type, and it works here."""
    suitable = (number in _CHANNELS.get(dtype, ()) and number % _LANES == 0 for number in weight.shape[:2])
    return all(suitable) and use_loops("winograd", _finds_the_plain_result)


def _predicts_classes(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether there are many outputs, in any number, and the transformed kernel is no larger than the largest of a
    trunk: a one-stage detector's classes of each anchor."""
    (outputs, inputs), widths = weight.shape[:2], _CHANNELS.get(dtype, range(0))
    fits = inputs in widths and inputs % _LANES == 0 and widths.start <= outputs <= (widths.stop - 1) ** 2 // inputs
    return fits and use_loops("winograd", _finds_the_plain_result)


def convolve_tiles(
    pixels: Tensor,
    kernel: Sequence[Tensor],
    bias: Tensor,
    output: Tensor,
    *,
    relu: bool,
    values: int = 0,
) -> None:
    """The convolution, then ReLU where asked for.

    Args:
        pixels: [N, H, W, C_in] contiguous, float32 or bfloat16.
        kernel: `transform_kernel`'s, each part as it is or as oneDNN has packed it.
        bias: [C_out] float32.
        output: written; [N, H, W, C_out] contiguous, float32 or bfloat16.
        values: of one position that are multiplied at once; 0 = few enough for the cache of a core.
    """
    images, height, width, channels = pixels.shape
    in_pieces(
        partial(_convolve_band, pixels, kernel, bias, output, tiles, relu=relu)
        for tiles in bands(images, height, width, channels, values or _VALUES_AT_ONCE)
    )


def _convolve_band(
    pixels: Tensor, kernel: Sequence[Tensor], bias: Tensor, output: Tensor, tiles: tuple[int, int], *, relu: bool
) -> None:
    """Some tiles, the first and the last + 1 of them, of `convolve_tiles`."""
    from maskrcnn_core.kernels.cpu.winograd_transforms import band, from_windows, to_windows

    chosen = band(*pixels.shape[1:3], *tiles)
    windows = staggered(len(chosen.tiles), pixels.shape[3])
    to_windows(pixels, chosen, windows)
    used = [values[slice(*rows)] for values, rows in zip(windows, chosen.used, strict=True)]
    products = [_product(values, part) for values, part in zip(used, kernel, strict=True)]
    from_windows(products, bias, chosen, output, relu=relu)


def bands(images: int, height: int, width: int, channels: int, values: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 of the tiles that are computed at once, so many that a position has up to `values`."""
    tiles = _tiles(images, height, width)
    count = -(-tiles * channels // values)
    return itertools.pairwise(tiles * part // count for part in range(count + 1) if count)


def staggered(tiles: int, channels: int) -> list[Tensor]:
    """A [tiles, channels] for each position, an odd number of cache lines apart: at a power of two they would all
    compete for the same few lines of the cache (13 against 4 ms for a map of 200 x 336)."""
    size = tiles * channels
    stride = size + _LANES * (1 - size // _LANES % 2)
    memory = POOL.empty((_POSITIONS, stride))
    return [part[:size].view(tiles, channels) for part in memory]


class Convolution(Protocol):
    """A convolution with what follows it."""

    def compute(self, x: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        """As `WinogradConv2d.compute`."""


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1, for inference on a CPU where `suits` says so.

    Its arithmetic is float32 whatever the maps are. Differs from the plain convolution by some 1e-5 of the largest
    output.

    Args:
        conv: its weights are copied.
        dtype: of the maps, float32 or bfloat16.
        few: the same convolution by other means, for maps of a few tiles.
    """

    bias: Tensor

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype = torch.float32, *, few: Convolution | None = None) -> None:
        super().__init__()
        self.few = few
        weight = conv.weight.detach()
        self.out_channels, self.in_channels = weight.shape[:2]
        # More channels of zeros where the loops, which take so many at once, would be left with fewer.
        weight = functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, -self.out_channels % _LANES))
        # No buffers: they have no storage that could be saved or moved.
        self._kernel = [
            torch.ops.mkldnn._reorder_linear_weight(part, _VALUES_AT_ONCE // self.in_channels)
            for part in transform_kernel(weight)
        ]
        bias = torch.zeros(self.out_channels) if conv.bias is None else conv.bias.detach().float().clone()
        self.register_buffer("bias", functional.pad(bias, (0, len(weight) - len(bias))), persistent=False)
        self._dtype = dtype

    @staticmethod
    def suits(conv: nn.Conv2d, dtype: torch.dtype) -> bool:
        """Whether this convolution, on large maps of this type, should be computed so."""
        geometry = (conv.stride, conv.padding, conv.dilation) == ((1, 1),) * 3 and conv.groups == 1
        plain = conv.kernel_size == (3, 3) and conv.padding_mode == "zeros"
        return geometry and plain and (has_a_width(conv.weight, dtype) or _predicts_classes(conv.weight, dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H, W], channels last."""
        return self.compute(x)

    def compute(self, x: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        """`forward`, plus `residual` [N, C_out, H, W] where given, then ReLU where asked for."""
        num_images, _, height, width = x.shape
        work = _tiles(num_images, height, width) * self.in_channels * self.out_channels
        if self.few is not None and work < _LEAST_WORK[self._dtype]:
            return self.few.compute(x, relu=relu, residual=residual)
        pixels = x.permute(0, 2, 3, 1).to(self._dtype).contiguous()
        output = POOL.empty((num_images, height, width, len(self.bias)), self._dtype)
        convolve_tiles(pixels, self._kernel, self.bias, output, relu=relu and residual is None)
        result = output.permute(0, 3, 1, 2)[:, : self.out_channels]
        if residual is not None:
            result.add_(residual)
            return result.relu_() if relu else result
        return result


def _tiles(images: int, height: int, width: int) -> int:
    return images * -(-height // _TILE) * -(-width // _TILE)


def _product(values: Tensor, kernel: Tensor) -> Tensor:
    """[U, C_in] and a kernel that oneDNN has packed -> [U, C_out]."""
    if len(values) == 0:
        return values
    product: Tensor = torch.ops.mkldnn._linear_pointwise(values, kernel, None, "none", [], "")
    return product


def _finds_the_plain_result() -> bool:
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        conv = nn.Conv2d(_LANES, _LANES, 3, padding=1)
        ramp = torch.arange(conv.weight.numel(), dtype=torch.float32)
        conv.weight.copy_((ramp * 0.37).sin().view_as(conv.weight))
        conv.bias = nn.Parameter(ramp[:_LANES] / 7 - 1)
        x = (torch.arange(_LANES * 49, dtype=torch.float32) * 0.61).cos().view(1, _LANES, 7, 7)
        wanted = functional.conv2d(x, conv.weight, conv.bias, padding=1)
        output = WinogradConv2d(conv)(x)
        return torch.allclose(output, wanted, rtol=1e-4, atol=1e-4)
