"""1x1 convolutions for inference on a CPU: products of all cells with a matrix that oneDNN has packed once.

oneDNN's convolution brings its weights into its own order at every call, which for the wide layers of a trunk's last
stages takes 5 to 15 % of the time of a band.
"""

from functools import partial

import torch
from torch import Tensor, nn

from maskrcnn_core.layers.band_rule import WORK_OF_VALUE, is_whole
from maskrcnn_core.layers.buffers import POOL
from maskrcnn_core.layers.thread_team import in_pieces

_TYPICAL_CELLS = 1024

# Bands for a core's cache, of about a millisecond.
_BAND_BYTES = 2 << 20
_BAND_WORK = 100 << 20


class PointwiseConv2d(nn.Module):
    """A 1x1 convolution in float32. Takes over the parameters of `conv`; `pack` says whether this torch can.

    Args:
        conv: plain, which `suits`.
        packed: its weight [C_out, C_in] in oneDNN's order.
    """

    def __init__(self, conv: nn.Conv2d, packed: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.out_channels = conv.stride, conv.out_channels
        self._packed = packed  # no buffer: it has no storage that could be saved or moved

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """Whether it is a plain 1x1 convolution."""
        return (conv.kernel_size, conv.padding, conv.groups) == ((1, 1), (0, 0), 1)

    @staticmethod
    def pack(conv: nn.Conv2d) -> "PointwiseConv2d | None":
        """The layer packed; None where torch or the processor can't."""
        weight = conv.weight.detach().flatten(1)
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_CELLS)
            one = PointwiseConv2d(conv, packed)
            one(weight.new_zeros(1, weight.shape[1], 1, 1))
        except (AttributeError, RuntimeError):
            return None
        return one

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H', W'], channels last."""
        return self.compute(x)

    def compute(self, x: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        """`forward`, plus `residual` [N, C_out, H', W'] where given, then ReLU where asked for."""
        seen = x.permute(0, 2, 3, 1)[:, :: self.stride[0], :: self.stride[1]]
        cells = seen.reshape(-1, x.shape[1])
        added = None if residual is None else residual.permute(0, 2, 3, 1).reshape(-1, self.out_channels)
        output = self._product(cells, added, relu=relu)
        return output.view(*seen.shape[:3], self.out_channels).permute(0, 3, 1, 2)

    def _product(self, cells: Tensor, added: Tensor | None, *, relu: bool) -> Tensor:
        """[M, C_in] and [M, C_out] -> [M, C_out]."""
        cell_bytes = cells.element_size() * self.out_channels
        cell_work = self.out_channels * (2 * cells.shape[1] + WORK_OF_VALUE)
        if is_whole(len(cells) * cell_bytes, len(cells) * cell_work):
            return self._band(cells, added, relu=relu)
        output = POOL.empty((len(cells), self.out_channels), cells.dtype)
        step = max(1, min(_BAND_BYTES // cell_bytes, _BAND_WORK // cell_work))
        in_pieces(
            partial(self._write_band, cells, added, output, slice(first, first + step), relu=relu)
            for first in range(0, len(cells), step)
        )
        return output

    def _write_band(self, cells: Tensor, added: Tensor | None, output: Tensor, some: slice, *, relu: bool) -> None:
        output[some].copy_(self._band(cells[some], None if added is None else added[some], relu=relu))

    def _band(self, cells: Tensor, added: Tensor | None, *, relu: bool) -> Tensor:
        alone = relu and added is None
        band: Tensor = torch.ops.mkldnn._linear_pointwise(
            cells, self._packed, self.bias, "relu" if alone else "none", [], ""
        )
        if added is not None:
            band.add_(added)
            if relu:
                band.relu_()
        return band
