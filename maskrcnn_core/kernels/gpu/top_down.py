"""The top-down step of a feature pyramid in one pass: a map plus the coarser one, each of whose cells covers 2 x 2."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _add_enlarged(fine, coarse, size, height, width, channels, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < size
    channel, cell = offset % channels, offset // channels
    column, line = cell % width, cell // width
    row, image = line % height, line // height
    coarse_offset = ((image * (height // 2) + row // 2) * (width // 2) + column // 2) * channels + channel
    added = tl.load(coarse + coarse_offset, mask=inside, other=0.0).to(tl.float32)
    values = tl.load(fine + offset, mask=inside, other=0.0).to(tl.float32)
    tl.store(fine + offset, (values + added).to(fine.dtype.element_ty), mask=inside)


def add_enlarged_(fine: Tensor, coarse: Tensor) -> Tensor:
    """`fine` [N, C, 2 h, 2 w] plus `coarse` [N, C, h, w] enlarged by nearest neighbour, written over `fine`; with
    gradients for both. Both of one type and in memory channels last."""
    enlarged: Tensor = _TopDown.apply(fine, coarse)
    return enlarged


class _TopDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fine: Tensor, coarse: Tensor) -> Tensor:
        assert fine.shape[2:] == (2 * coarse.shape[2], 2 * coarse.shape[3])
        assert fine.is_contiguous(memory_format=torch.channels_last)
        ctx.mark_dirty(fine)
        ctx.shape = coarse.shape
        coarse = coarse.contiguous(memory_format=torch.channels_last)
        _add_enlarged[(triton.cdiv(fine.numel(), _BLOCK),)](
            fine, coarse, fine.numel(), fine.shape[2], fine.shape[3], fine.shape[1], BLOCK=_BLOCK, num_warps=8
        )
        return fine

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        size = [gradient.shape[2], gradient.shape[3]]
        coarse = torch.ops.aten.upsample_nearest2d_backward(gradient, size, list(ctx.shape), None, None)
        return gradient, coarse
