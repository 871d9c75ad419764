"""Winograd's convolution (`winograd.py`) with its gradients, for training on a CPU.

The gradient of the input is the same convolution with the kernel turned around. That of the kernel is the transposed
algorithm: 36 products of the transformed input with the gradients spread to the points, summed over the tiles, then
back to nine weights. Nothing transformed is kept between the passes: to transform once more costs less than the memory.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maskrcnn_core.layers.buffers import POOL
from maskrcnn_core.layers.winograd import bands, convolve_tiles, kernel_matrix, staggered, transform_kernel

# Values of one position that are multiplied at once: kernels, which change at each step, are brought into oneDNN's
# order anew for each band.
_VALUES_AT_ONCE = 400 << 10


def winograd_convolution(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    """A 3x3 convolution of stride 1 and padding 1, then ReLU where asked for. Gradients of the first order.

    Args:
        x: [N, C_in, H, W] float32 on a CPU; for what `winograd.pays_in_training`.
        weight: [C_out, C_in, 3, 3] float32; bias: [C_out] float32.

    Returns:
        [N, C_out, H, W], channels last.
    """
    output: Tensor = _Winograd.apply(x, weight, bias, relu)
    return output


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        output = _convolved(x, weight, bias, relu=relu)
        ctx.save_for_backward(x, weight, *((output,) if relu else ()))
        ctx.relu = relu
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *made = ctx.saved_tensors
        if ctx.relu:
            gradient = torch.ops.aten.threshold_backward(gradient, made[0], 0)
        wanted = ctx.needs_input_grad
        turned = weight.transpose(0, 1).flip(2, 3)
        to_x = _convolved(gradient, turned, weight.new_zeros(len(turned)), relu=False) if wanted[0] else None
        to_weight = _weight_gradient(x, gradient) if wanted[1] else None
        to_bias = gradient.sum(dim=(0, 2, 3)) if wanted[2] else None
        return to_x, to_weight, to_bias, None


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    images, _, height, width = x.shape
    output = POOL.maps(images, len(weight), height, width)
    kernel = list(transform_kernel(weight, torch.float32))
    convolve_tiles(_pixels(x), kernel, bias, output.permute(0, 2, 3, 1), relu=relu, values=_VALUES_AT_ONCE)
    return output


def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """[N, C_in, H, W] and [N, C_out, H, W] -> [C_out, C_in, 3, 3]."""
    from maskrcnn_core.kernels.cpu.winograd_transforms import POSITIONS, band, spread_to_points, to_windows

    pixels, gradients = _pixels(x), _pixels(gradient)
    images, height, width, channels = pixels.shape
    outputs = gradients.shape[3]
    like = x.new_empty(outputs, channels, 1, 1)
    sums = POOL.empty((POSITIONS, outputs * channels)).zero_()
    for first, last in bands(images, height, width, max(channels, outputs), _VALUES_AT_ONCE):
        chosen = band(height, width, first, last, shorten=False)
        windows, spread = staggered(last - first, channels), staggered(last - first, outputs)
        to_windows(pixels, chosen, windows)
        spread_to_points(gradients, chosen, spread)
        for total, samples, slopes in zip(sums, windows, spread, strict=True):
            total += _sum_of_products(slopes, samples, like).flatten()
    weights = torch.mm(kernel_matrix().to(torch.float32).T, sums)
    return weights.view(3, 3, outputs, channels).permute(2, 3, 0, 1)


def _sum_of_products(slopes: Tensor, samples: Tensor, like: Tensor) -> Tensor:
    """[T, C_out] and [T, C_in] -> [C_out, C_in, 1, 1], by oneDNN's gradient of a 1x1 convolution: twice as fast as
    MKL's product on processors that MKL does not favour."""
    as_maps = (part.view(1, 1, *part.shape).permute(0, 3, 1, 2) for part in (slopes, samples))
    total: Tensor
    _, total, _ = torch.ops.aten.convolution_backward(
        *as_maps, like, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
    )
    return total


def _pixels(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).contiguous()
