"""Minor surgery: batch norm with fixed statistics is an affine transform, and an affine after a convolution is a
convolution.

The tutorial's step "replace test-time batch normalization with fixed affine transform" as one function on any network.
While training, the affine is applied to the weights instead of the activations: the same result and gradient, less
memory and time. For inference `fold` multiplies it in once.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from maskrcnn_core.layers.trained_norm import BatchNormConv2d, WorkersBatchNorm2d, group_norm, workers_batch_norm


class FrozenAffine(nn.Module):
    """y = x * scale + shift for each channel; `scale` and `shift` [C] are constants."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> same shape."""
        return x * self.scale[:, None, None] + self.shift[:, None, None]


class FrozenAffineConv2d(nn.Module):
    """Convolution followed by a constant affine: `weight` is learnt, `scale` and `shift` [C_out] are not."""

    scale: Tensor
    shift: Tensor

    def __init__(self, conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.weight = conv.weight
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        if conv.bias is not None:
            shift = shift + scale * conv.bias.detach()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H', W']."""
        weight = self.weight * self.scale[:, None, None, None]
        return functional.conv2d(x, weight, self.shift, self.stride, self.padding, self.dilation, self.groups)

    def folded(self) -> nn.Conv2d:
        """The plain convolution with the same outputs, for inference."""
        out_channels, in_channels = self.weight.shape[:2]
        conv: nn.Conv2d = nn.utils.skip_init(
            nn.Conv2d,
            in_channels * self.groups,
            out_channels,
            cast(Any, self.weight.shape[2:]),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(self.weight * self.scale[:, None, None, None])
            cast(Tensor, conv.bias).copy_(self.shift)
        conv.requires_grad_(False)
        return conv


def _replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    parent_path, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent_path), name, module)


def _frozen(norm: nn.BatchNorm2d) -> nn.Module:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach()
        beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias.detach()
        scale = gamma * (norm.running_var + norm.eps).rsqrt()
        affine = FrozenAffine(scale, beta - norm.running_mean * scale)
    # timm's BatchNormAct2d carries the activation that follows.
    activation = getattr(norm, "act", None)
    return affine if activation is None else nn.Sequential(affine, activation)


def freeze_batch_norms(network: nn.Module, example: Tensor) -> nn.Module:
    """Turn every batch norm of a network into a constant affine, merged into the convolution before it where there
    is one.

    Args:
        network: changed in place; its outputs in eval mode stay the same. Statistics must already be loaded.
        example: [1, 3, H, W], any values; one forward pass finds which convolution feeds which norm.

    Returns:
        The same network.
    """
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            _replace_module(network, path, _frozen(module))
    for conv_path, affine_path in _conv_norm_pairs(network, example, FrozenAffine):
        conv, affine = network.get_submodule(conv_path), network.get_submodule(affine_path)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(affine, FrozenAffine)
        _replace_module(network, conv_path, FrozenAffineConv2d(conv, affine.scale, affine.shift))
        _replace_module(network, affine_path, nn.Identity())
    return network


def _conv_norm_pairs(network: nn.Module, example: Tensor, norm_type: type[nn.Module]) -> list[tuple[str, str]]:
    """Paths of (convolution, norm) where the norm, of a type, alone reads what the convolution makes.

    Where something else reads it too (the shortcut around a norm that comes first), or a module runs twice, the norm
    has to stay on its own.
    """
    producers: dict[int, tuple[str, Tensor, Any]] = {}
    pairs: list[tuple[str, str, Any]] = []
    runs: Counter[str] = Counter()
    handles: list[RemovableHandle] = []

    def on_conv(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            runs[path] += 1
            producers[id(output)] = (path, output, output.grad_fn)  # the tensor is kept, so that its id stays its own

        return hook

    def on_norm(path: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            runs[path] += 1
            conv, __, node = producers.get(id(inputs[0]), ("", None, None))
            if conv and inputs[0].grad_fn is node:  # not changed in place meanwhile
                pairs.append((conv, path, node))

        return hook

    for path, module in network.named_modules():
        # Only the plain class: a subclass may pad by itself or standardise its weights.
        if type(module) is nn.Conv2d and module.padding_mode == "zeros":
            handles.append(module.register_forward_hook(on_conv(path)))
        elif isinstance(module, norm_type):
            handles.append(module.register_forward_pre_hook(on_norm(path)))
    was_training = network.training
    try:
        with torch.enable_grad():  # the graph says who reads what, functions included
            result = network.eval()(example.detach().requires_grad_() * 1.0)
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    readers = _readers([result] if isinstance(result, Tensor) else list(result))
    return [(conv, norm) for conv, norm, node in pairs if runs[conv] == runs[norm] == readers[node] == 1]


def _readers(results: Sequence[Tensor]) -> Counter[Any]:
    """How many operations read the output of each node of the graph; being a result counts as being read."""
    stack = [result.grad_fn for result in results if result.grad_fn is not None]
    readers: Counter[Any] = Counter(stack)
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        inputs = [producer for producer, _ in node.next_functions if producer is not None]
        readers.update(inputs)
        stack.extend(inputs)
    return readers


def train_batch_norms(network: nn.Module, norm_type: str, example: Tensor, *, frozen: Collection[str] = ()) -> int:
    """Turn the batch norms of a network into norms that learn.

    Args:
        network: changed in place. Statistics must already be loaded.
        norm_type: "sync_batch" (over all workers; joined with the convolution before it, so that `fold` can merge the
            two) or "group".
        example: [1, 3, H, W], any values; one forward pass finds which convolution feeds which norm.
        frozen: paths of norms that are left as they are.

    Returns:
        How many norms learn now.
    """
    made = {"sync_batch": workers_batch_norm, "group": group_norm}[norm_type]
    norms = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and path not in frozen
    ]
    for path, norm in norms:
        _replace_module(network, path, made(norm))
    for conv_path, norm_path in _conv_norm_pairs(network, example, WorkersBatchNorm2d):
        conv, trained = network.get_submodule(conv_path), network.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(trained, WorkersBatchNorm2d)
        _replace_module(network, norm_path, nn.Identity())
        _replace_module(network, conv_path, BatchNormConv2d(conv, trained))
    return len(norms)


def fold(network: nn.Module) -> nn.Module:
    """Replace, in place, each convolution with a batch norm, frozen or learnt, by the plain convolution with the same
    outputs in evaluation mode, for inference."""
    for path, module in list(network.named_modules()):
        if isinstance(module, FrozenAffineConv2d | BatchNormConv2d):
            _replace_module(network, path, module.folded())
    return network
