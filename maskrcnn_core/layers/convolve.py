"""A convolution with what follows it in one kernel: bias, the shortcut of a residual block, ReLU.

On a CPU the layers of `cpu_layers` do so by themselves. torch's convolution on a GPU adds its bias in a pass of
its own over the result, the shortcut is another, ReLU a third: for the wide maps of a detector each takes about as long
as the convolution. cuDNN does all of them while it writes the result. It has no gradient in torch, so that is written
here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.kernels.gpu.availability import use_kernels
from maskrcnn_core.layers.cpu_layers import BandedConv2d
from maskrcnn_core.layers.frozen_norm import FrozenAffineConv2d
from maskrcnn_core.layers.onednn import convolution
from maskrcnn_core.layers.pointwise import PointwiseConv2d
from maskrcnn_core.layers.winograd import WinogradConv2d, pays_in_training
from maskrcnn_core.layers.winograd_training import winograd_convolution

# Geometries and types that cuDNN has refused.
_REFUSED: set[tuple[object, ...]] = set()


@dataclass(frozen=True)
class Geometry:
    """Of a convolution (attributes as of `nn.Conv2d`)."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


POINTWISE = Geometry((1, 1), (0, 0), (1, 1))
_PADDED = Geometry((1, 1), (1, 1), (1, 1))
_STEM = Geometry((2, 2), (3, 3), (1, 1))


def convolve(conv: nn.Module, x: Tensor, *, relu: bool = False, residual: Tensor | None = None) -> Tensor:
    """`conv(x)`, plus `residual` where given, then ReLU where asked for.

    Args:
        conv: any layer [N, C_in, H, W] -> [N, C_out, H', W'].
        x: its input.
        residual: of the output's shape; needs `relu`.
    """
    assert residual is None or relu
    if isinstance(conv, BandedConv2d | PointwiseConv2d | WinogradConv2d):
        return conv.compute(x, relu=relu, residual=residual)
    geometry = _geometry(conv)
    if geometry is not None and _suits(x, geometry):
        return convolve_with(x, *_parameters(conv), geometry, relu=relu, residual=residual)
    if geometry == _PADDED and _learns_on_cpu(x, conv):
        output = winograd_convolution(x, *_parameters(conv), relu=relu and residual is None)
        if residual is None:
            return output
        return functional.relu(output + residual, inplace=True)
    output = conv(x)
    if residual is not None:
        output += residual
    return functional.relu(output, inplace=True) if relu else output


def convolve_with(
    x: Tensor, weight: Tensor, bias: Tensor, geometry: Geometry, *, relu: bool, residual: Tensor | None = None
) -> Tensor:
    """As `convolve`, of weights [C_out, C_in / groups, h, w] and a bias [C_out]; as autocast says in half precision."""
    if not _suits(x, geometry):
        if (
            x.device.type == "cpu"
            and x.dtype == weight.dtype
            and torch.is_inference_mode_enabled()
            and residual is None
        ):
            return convolution(x, weight, bias, *_arguments(geometry), relu=relu)
        output = functional.conv2d(x, weight, bias, *_arguments(geometry))
        if residual is not None:
            output += residual
        return functional.relu(output, inplace=True) if relu else output
    half = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if half else x.dtype
    parts = (None if part is None else part.to(dtype) for part in (x, weight, bias, residual))
    fused: Tensor = _Fused.apply(*parts, geometry, relu)
    return fused


def convolve_stem(conv: nn.Module, x: Tensor) -> Tensor:
    """`convolve` with ReLU of a network's first layer.

    A GPU's matrix units take the channels of a pixel eight at a time, and an image has three. Where the layer is a 7x7
    convolution with stride 2, as in a ResNet, 2 x 2 pixels become one with 12 channels and the layer a 4x4 convolution
    with stride 1: the same products, fewer of them with padding.
    """
    geometry = _geometry(conv)
    if geometry != _STEM or x.shape[1] != 3 or x.shape[2] % 2 or x.shape[3] % 2 or not _suits(x, geometry):
        return convolve(conv, x, relu=True)
    weight, bias = _parameters(conv)
    if weight.shape[2:] != (7, 7):
        return convolve(conv, x, relu=True)
    images, _, height, width = x.shape
    # Output i sees pixels 2 i - 3 to 2 i + 3: of the halved rows i - 2 to i + 1, of the first of them the second pixel.
    wide = functional.pad(weight, (1, 0, 1, 0)).unflatten(3, (4, 2)).unflatten(2, (4, 2))  # [out, 3, 4, 2, 4, 2]
    wide = wide.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)  # channel, row within, column within
    wide = functional.pad(wide, (0, 0, 0, 0, 0, 4)).contiguous(memory_format=torch.channels_last)
    packed = x.new_zeros(images, height // 2 + 3, width // 2 + 3, 16)
    pixels = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [N, 3, h, 2, w, 2]
    packed[:, 2:-1, 2:-1, :12].unflatten(3, (3, 2, 2)).copy_(pixels.permute(0, 2, 4, 1, 3, 5))
    return convolve_with(packed.permute(0, 3, 1, 2), wide, bias, POINTWISE, relu=True)


def _geometry(conv: nn.Module) -> Geometry | None:
    """Of a layer that is a plain convolution with a bias, or one with a constant affine; None = it is another."""
    # Only the plain classes: a subclass may pad by itself or standardise its weights.
    if type(conv) is nn.Conv2d:
        plain = conv.padding_mode == "zeros" and conv.bias is not None
    else:
        plain = type(conv) is FrozenAffineConv2d
    layer: Any = conv
    if not plain or isinstance(layer.padding, str):
        return None
    return Geometry(layer.stride, layer.padding, layer.dilation, layer.groups)


def _parameters(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that has a `_geometry`."""
    if isinstance(conv, FrozenAffineConv2d):
        return conv.weight * conv.scale[:, None, None, None], conv.shift
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    return conv.weight, conv.bias


def _suits(x: Tensor, geometry: Geometry) -> bool:
    return geometry.groups == 1 and x.numel() > 0 and use_kernels(x, "convolution")


def _learns_on_cpu(x: Tensor, conv: nn.Module) -> bool:
    """Whether a 3x3 layer is trained where Winograd's convolution pays: not in half precision, where oneDNN's
    gradients are as fast (2.65 against 2.53 s for a step)."""
    weight = conv.weight
    assert isinstance(weight, Tensor)
    return (
        x.device.type == "cpu"
        and not torch.is_inference_mode_enabled()
        and not torch.is_autocast_enabled("cpu")
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and weight.shape[2:] == (3, 3)
        and weight.dtype == torch.float32
        and pays_in_training(x.shape, weight)
    )


def _arguments(geometry: Geometry) -> tuple[Any, ...]:
    return geometry.stride, geometry.padding, geometry.dilation, geometry.groups


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, geometry: Geometry, relu: bool
    ) -> Tensor:
        output = _forward(x, weight, bias, residual, geometry, relu=relu)
        ctx.save_for_backward(x, weight, *((output,) if relu else ()))
        ctx.geometry, ctx.relu = geometry, relu
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *made = ctx.saved_tensors
        (gradient,) = gradients
        if ctx.relu:
            gradient = torch.ops.aten.threshold_backward(gradient, made[0], 0)
        wanted = ctx.needs_input_grad
        to_x = to_weight = None
        if wanted[0] or wanted[1]:
            to_x, to_weight, _ = torch.ops.aten.convolution_backward(
                gradient,
                x,
                weight,
                None,
                *(list(part) for part in (ctx.geometry.stride, ctx.geometry.padding, ctx.geometry.dilation)),
                False,
                [0, 0],
                ctx.geometry.groups,
                [wanted[0], wanted[1], False],
            )
        to_bias = gradient.sum(dim=(0, 2, 3)) if wanted[2] else None
        return to_x, to_weight, to_bias, gradient if wanted[3] else None, None, None


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, geometry: Geometry, *, relu: bool
) -> Tensor:
    key = (weight.shape, weight.dtype, geometry, residual is None)
    if relu and key not in _REFUSED:
        try:
            if residual is None:
                return torch.cudnn_convolution_relu(x, weight, bias, *_arguments(geometry))
            return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *_arguments(geometry))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            _REFUSED.add(key)
    output = functional.conv2d(x, weight, None, *_arguments(geometry))
    if output.is_cuda and output.is_contiguous(memory_format=torch.channels_last):
        from maskrcnn_core.kernels.gpu.bias import add_bias_

        add_bias_(output, bias)
    else:
        output += bias[:, None, None]
    if residual is not None:
        output += residual
    return output.relu_() if relu else output
