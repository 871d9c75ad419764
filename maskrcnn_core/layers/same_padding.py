"""Padding "same": layers whose output has ceil(input / stride) cells, so that every map has an integer scale.

The tutorial's advice for any backbone ("Use 'same' padding everywhere, preserves integer scales"). Padding is
symmetric, as the convolutions of residual networks pad: (kernel - 1) / 2 on each side.
"""

import torch
from timm.models.inception_v3 import InceptionB, InceptionD
from torch import Tensor, nn


def pad_same(network: nn.Module) -> None:
    """Give every convolution and pool of a network "same" padding, in place; weights stay.

    Layers that pad so already are not changed. Of those with an even kernel only pools whose kernel is their stride can
    be mended (by counting the last, partial window). Layers that pad by themselves (subclasses) are left alone.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.padding = tuple(
                same if kernel % 2 else pad
                for kernel, pad, same in zip(
                    module.kernel_size, module.padding, same_pads(module.kernel_size, module.dilation), strict=True
                )
            )
        elif type(module) is nn.MaxPool2d or type(module) is nn.AvgPool2d:
            _pad_pool(module)


def same_pads(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, int]:
    """Padding of height and width that keeps a stride-1 layer's size, for odd kernels."""
    (height, width), (down, across) = kernel, dilation
    return down * (height - 1) // 2, across * (width - 1) // 2


def _pad_pool(pool: nn.MaxPool2d | nn.AvgPool2d) -> None:
    kernel, stride, padding = _pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding)
    dilation = _pair(pool.dilation) if isinstance(pool, nn.MaxPool2d) else (1, 1)
    if all(size % 2 for size in kernel):
        same = same_pads(kernel, dilation)
        if padding == same and not pool.ceil_mode:
            return
        pool.padding, pool.ceil_mode = same, False
    elif kernel == stride and padding == (0, 0):
        pool.ceil_mode = True
    if isinstance(pool, nn.AvgPool2d):
        pool.count_include_pad = False  # an average at the border is of what lies inside


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


class PaddedReduction(nn.Module):
    """An Inception-v3 block that halves the map, with its pool as a layer that can be padded.

    timm's blocks call the unpadded pool as a function, out of reach of `pad_same`.

    Args:
        block: timm's InceptionB or InceptionD; its layers are named BRANCH or BRANCH_n.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        branches: dict[str, list[nn.Module]] = {}
        for name, layer in block.named_children():
            branches.setdefault(name.partition("_")[0], []).append(layer)
        self.branches = nn.ModuleList(nn.Sequential(*layers) for layers in branches.values())
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', ceil(H / 2), ceil(W / 2)]."""
        return torch.cat([*(branch(x) for branch in self.branches), self.pool(x)], dim=1)


def make_reductions_paddable(network: nn.Module) -> None:
    """Replace, in place, the blocks of timm's Inception-v3 that pool by a function."""
    for path, module in list(network.named_modules()):
        if isinstance(module, InceptionB | InceptionD):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, PaddedReduction(module))
