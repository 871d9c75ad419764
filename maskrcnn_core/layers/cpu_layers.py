"""A detector's layers for inference on a CPU: same weights, less time.

3x3 convolutions become Winograd's where that is less work; others with large results are computed in bands of rows, so
that none is larger than what libc keeps for reuse, and are gathered in a pooled buffer (`buffers.py` says why). What
follows a convolution, a shortcut and a ReLU, is done to each band while it is in the cache. The weights of large fully
connected layers are brought into oneDNN's order once instead of at every call.
"""

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.layers.band_rule import WORK_OF_VALUE, is_whole
from maskrcnn_core.layers.buffers import POOL
from maskrcnn_core.layers.half_weights import is_large
from maskrcnn_core.layers.onednn import convolution
from maskrcnn_core.layers.pointwise import PointwiseConv2d
from maskrcnn_core.layers.thread_team import in_pieces
from maskrcnn_core.layers.winograd import WinogradConv2d

# Bands for a core's cache, which take it about a millisecond or two. Operations; a weight, which oneDNN brings into its
# own order for each band, takes as long as many.
_BAND_BYTES = 3 << 20
_BAND_WORK = 200 << 20
_WORK_OF_WEIGHT = 3000

_LARGE_LINEAR = 1 << 20
_TYPICAL_ROWS = 250


class BandedConv2d(nn.Module):
    """A convolution whose large outputs are computed band by band. Takes over the parameters of `conv`.

    Args:
        conv: plain.
        dtype: that it computes in; another than the weights' under autocast.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        if dtype != torch.float32 and is_large(self.weight):
            self.weight = nn.Parameter(self.weight.detach().to(dtype), requires_grad=False)
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups
        self.padding = cast(tuple[int, int], conv.padding)
        self._dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H', W']."""
        return self.compute(x)

    def compute(self, x: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        """`forward`, plus `residual` [N, C_out, H', W'] where given, then ReLU where asked for."""
        height, width = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(
                x.shape[2:], self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True
            )
        )
        row_bytes = self._dtype.itemsize * width * len(self.weight)
        row_work = width * (2 * self.weight.numel() + WORK_OF_VALUE * len(self.weight))
        least_work = 2 * _WORK_OF_WEIGHT * self.weight.numel()
        if is_whole(len(x) * height * row_bytes, len(x) * height * row_work, least_work):
            return self._whole(x, relu=relu, residual=residual)
        output = POOL.empty((len(x), height, width, len(self.weight)), self._dtype)
        rows = min(_BAND_BYTES // row_bytes, _BAND_WORK // row_work)
        rows = max(1, rows, _WORK_OF_WEIGHT * self.weight.numel() // row_work)
        images = max(1, rows // height)
        added = None if residual is None else residual.permute(0, 2, 3, 1)
        in_pieces(
            partial(self._band, x, output, added, (first, first + images), (top, min(top + rows, height)), relu=relu)
            for first in range(0, len(x), images)
            for top in range(0, height, rows)
        )
        return output.permute(0, 3, 1, 2)

    def _whole(self, x: Tensor, *, relu: bool, residual: Tensor | None) -> Tensor:
        if residual is None:
            return self._convolve(x, self.padding, relu=relu)
        whole = self._convolve(x, self.padding).add_(residual)
        return whole.relu_() if relu else whole

    def _band(
        self,
        x: Tensor,
        output: Tensor,
        added: Tensor | None,
        images: tuple[int, int],
        rows: tuple[int, int],
        *,
        relu: bool,
    ) -> None:
        """Some rows of some images of `output`, and of what is added to it, both [N, H', W', C_out]."""
        some, target = slice(*images), output[slice(*images), slice(*rows)]
        alone = relu and added is None
        band = self._convolve(self._rows_for(x[some], *rows), (0, self.padding[1]), relu=alone).permute(0, 2, 3, 1)
        if added is None:
            target.copy_(band)
            return
        torch.add(band, added[some, slice(*rows)], out=target)
        if relu:
            target.relu_()

    def _rows_for(self, images: Tensor, top: int, bottom: int) -> Tensor:
        """The rows of [N, C, H, W] that output rows top .. bottom see, zeros outside of the image."""
        height, reach = images.shape[2], self.dilation[0] * (self.weight.shape[2] - 1) + 1
        first = top * self.stride[0] - self.padding[0]
        last = (bottom - 1) * self.stride[0] - self.padding[0] + reach
        rows = images[:, :, max(first, 0) : min(last, height)]
        above, below = max(-first, 0), max(last - height, 0)
        if above == 0 and below == 0:
            return rows
        return functional.pad(rows.permute(0, 2, 3, 1), (0, 0, 0, 0, above, below)).permute(0, 3, 1, 2)

    def _convolve(self, x: Tensor, padding: tuple[int, int], *, relu: bool = False) -> Tensor:
        # As autocast does; large weights are stored in the type.
        x, weight = x.to(self._dtype), self.weight.to(self._dtype)
        bias = None if self.bias is None else self.bias.to(self._dtype)
        return convolution(x, weight, bias, self.stride, padding, self.dilation, self.groups, relu=relu)


class PackedLinear(nn.Module):
    """A fully connected layer with its weights in oneDNN's own order (1000 regions x 12544 -> 1024: 75 against 190 ms
    on 2 cores).

    The operators are those that torch's own compiler uses; `pack` says whether this torch has them.
    """

    def __init__(self, packed: Tensor, bias: Tensor) -> None:
        super().__init__()
        self._packed = packed  # no buffer: it has no storage that could be saved or moved
        self.bias = bias

    @staticmethod
    def pack(layer: nn.Linear) -> nn.Module:
        """The layer packed, or as it is where torch or the processor can't."""
        bias = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _TYPICAL_ROWS)
            one = PackedLinear(packed, bias)
            one(layer.weight.new_zeros(1, layer.in_features))
        except (AttributeError, RuntimeError):
            return layer
        return one

    def forward(self, x: Tensor) -> Tensor:
        """[R, C_in] -> [R, C_out]."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return output


def use_cpu_layers(network: nn.Module, *, half: bool = False) -> None:
    """Replace, in place, the layers of a network for inference on a CPU.

    Args:
        network: in inference form.
        half: it computes in half precision, by autocast. Winograd's convolutions then still compute in float32, and
            fully connected layers are left to oneDNN.
    """
    for name, child in list(network.named_children()):
        # Only the plain classes: a subclass may pad by itself or standardise its weights.
        if type(child) is nn.Conv2d and child.padding_mode == "zeros" and isinstance(child.padding, tuple):
            setattr(network, name, _replacement(child, half=half))
        elif not half and type(child) is nn.Linear and child.in_features * child.out_features >= _LARGE_LINEAR:
            setattr(network, name, PackedLinear.pack(child))
        else:
            use_cpu_layers(child, half=half)


def _replacement(conv: nn.Conv2d, *, half: bool) -> nn.Module:
    dtype = torch.bfloat16 if half else torch.float32
    if WinogradConv2d.suits(conv, dtype):
        return WinogradConv2d(conv, dtype, few=BandedConv2d(conv, dtype))
    if not half and PointwiseConv2d.suits(conv) and (packed := PointwiseConv2d.pack(conv)) is not None:
        return packed
    return BandedConv2d(conv, dtype)
