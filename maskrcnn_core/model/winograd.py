"""3x3 convolution with four times fewer multiplications (Lavin and Gray, CVPR 2016: F(4x4, 3x3)).

Each 4x4 tile of the output is an inverse transform of a 6x6 elementwise product, summed over the channels, of the
transformed input tile and the transformed kernel. The sums over channels for all tiles are 36 matrix products, which
oneDNN computes; `cpu_kernels/winograd_transforms.py` has the transforms.
"""

import itertools
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.cpu_kernels.availability import loops_work
from maskrcnn_core.model.buffers import POOL

# What `winograd_transforms` has too, which cannot be imported where there is no Numba.
_TILE = 4
_POSITIONS = 36
_LANES = 16
_POINTS = (0.0, 1.0, -1.0, 1.5, -1.5)
# Values of one position that are multiplied at once: enough for products at full rate.
_VALUES_AT_ONCE = 400 << 10
# Below it the 36 products cost more in calls than they save in arithmetic.
_FEWEST_TILES = 40
_FEWEST_TILES_HALF = 80


def transform_kernel(weight: Tensor) -> Tensor:
    """[C_out, C_in, 3, 3] -> [36, C_out, C_in], computed in float64."""
    rows = []
    for point in _POINTS:
        scale = np.prod([point - other for other in _POINTS if other != point])
        rows.append([point**power / scale for power in range(3)])
    matrix = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)
    kernel = torch.einsum("ij,kcjl,ml->imkc", matrix, weight.double(), matrix)
    return kernel.flatten(0, 1).to(weight.dtype).contiguous()


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
        self._fewest = _FEWEST_TILES if dtype == torch.float32 else _FEWEST_TILES_HALF
        weight = conv.weight.detach()
        self.out_channels, self.in_channels = weight.shape[:2]
        # No buffers: they have no storage that could be saved or moved.
        self._kernel = [
            torch.ops.mkldnn._reorder_linear_weight(part, _VALUES_AT_ONCE // self.in_channels)
            for part in transform_kernel(weight.float())
        ]
        bias = torch.zeros(self.out_channels) if conv.bias is None else conv.bias.detach().float().clone()
        self.register_buffer("bias", bias, persistent=False)
        self._dtype = dtype

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """Whether this convolution can be computed so, here."""
        geometry = (conv.stride, conv.padding, conv.dilation) == ((1, 1),) * 3 and conv.groups == 1
        plain = conv.kernel_size == (3, 3) and conv.padding_mode == "zeros"
        even = conv.in_channels % _LANES == 0 and conv.out_channels % _LANES == 0
        return geometry and plain and even and loops_work(_finds_the_plain_result)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H, W], channels last."""
        return self.compute(x)

    def compute(self, x: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        """`forward`, plus `residual` [N, C_out, H, W] where given, then ReLU where asked for."""
        from maskrcnn_core.cpu_kernels.winograd_transforms import band, from_windows, to_windows

        num_images, _, height, width = x.shape
        tiles = num_images * -(-height // _TILE) * -(-width // _TILE)
        if self.few is not None and tiles < self._fewest:
            return self.few.compute(x, relu=relu, residual=residual)
        pixels = x.permute(0, 2, 3, 1).to(self._dtype).contiguous()
        output = POOL.empty((num_images, height, width, self.out_channels), self._dtype)
        bands = -(-tiles * self.in_channels // _VALUES_AT_ONCE)
        for first, last in itertools.pairwise(tiles * part // bands for part in range(bands + 1) if bands):
            chosen = band(height, width, first, last)
            windows = _staggered(last - first, self.in_channels)
            to_windows(pixels, chosen, windows)
            used = [values[slice(*rows)] for values, rows in zip(windows, chosen.used, strict=True)]
            products = [_product(values, kernel) for values, kernel in zip(used, self._kernel, strict=True)]
            from_windows(products, self.bias, chosen, output, relu=relu and residual is None)
        result = output.permute(0, 3, 1, 2)
        if residual is not None:
            result.add_(residual)
            return result.relu_() if relu else result
        return result


def _product(values: Tensor, kernel: Tensor) -> Tensor:
    """[U, C_in] and a kernel that oneDNN has packed -> [U, C_out]."""
    if len(values) == 0:
        return values
    product: Tensor = torch.ops.mkldnn._linear_pointwise(values, kernel, None, "none", [], "")
    return product


def _staggered(tiles: int, channels: int) -> list[Tensor]:
    """A [tiles, channels] for each position, an odd number of cache lines apart: at a power of two they would all
    compete for the same few lines of the cache (13 against 4 ms for a map of 200 x 336)."""
    size = tiles * channels
    stride = size + _LANES * (1 - size // _LANES % 2)
    memory = POOL.empty((_POSITIONS, stride))
    return [part[:size].view(tiles, channels) for part in memory]


def _finds_the_plain_result() -> bool:
    with torch.inference_mode():
        conv = nn.Conv2d(_LANES, _LANES, 3, padding=1)
        ramp = torch.arange(conv.weight.numel(), dtype=torch.float32)
        conv.weight.copy_((ramp * 0.37).sin().view_as(conv.weight))
        conv.bias = nn.Parameter(ramp[:_LANES] / 7 - 1)
        x = (torch.arange(_LANES * 49, dtype=torch.float32) * 0.61).cos().view(1, _LANES, 7, 7)
        wanted = functional.conv2d(x, conv.weight, conv.bias, padding=1)
        found = WinogradConv2d(conv)(x)
        return torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
