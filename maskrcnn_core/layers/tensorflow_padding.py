"""TensorFlow's padding "SAME" of layers with a stride: as much as is missing for ceil(size / stride) cells, the odd
pixel at the right and the bottom.

Symmetric padding by (kernel - 1) / 2 gives as many cells, but where a side is a multiple of the stride they lie half a
stride further to the upper left, and weights that were learnt with the one don't fit the other.
"""

from torch import Tensor, nn
from torch.nn import functional


class TensorFlowPad(nn.Module):
    """Pads the input of a layer that pads nothing itself.

    Args:
        kernel: its side.
        stride: more than 1; with 1 symmetric padding is the same.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H + h, W + w], zeros around."""
        missing = [max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0) for size in x.shape[-2:]]
        (down, across) = missing
        return functional.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))


def pad_as_tensorflow(network: nn.Module) -> None:
    """Give every square convolution with a stride TensorFlow's padding, in place; the names of its weights get a `.1`.

    Layers that pad by themselves (subclasses) are left alone.
    """
    for path, module in list(network.named_modules()):
        if type(module) is nn.Conv2d and module.stride[0] > 1 and module.kernel_size[0] > 1:
            module.padding = (0, 0)
            parent, _, name = path.rpartition(".")
            padded = nn.Sequential(TensorFlowPad(module.kernel_size[0], module.stride[0]), module)
            setattr(network.get_submodule(parent), name, padded)
