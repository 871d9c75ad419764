"""Stages of a trunk: the stem, then for each map C2, C3, ... the layers that make it from the one before.

A stage is a list of module paths, so that any trunk can freeze or dilate its stages whatever it is built of.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_core.layers.same_padding import same_pads

STRIDES = (4, 8, 16, 32)


def stages_by_prefix(network: nn.Module, prefixes: Sequence[Sequence[str]]) -> list[list[str]]:
    """Paths of all layers that are, or lie in, each stage's modules: for trunks that know their own parts."""
    layers = [f"{path}." for path in _layers(network)]
    return [
        [path[:-1] for path in layers if path.startswith(tuple(f"{prefix}." for prefix in stage))] for stage in prefixes
    ]


def traced_stages(trunk: nn.Module) -> list[list[str]]:
    """Stages of any trunk, by the order in which its layers run on a small image.

    A layer that runs after map l - 1 is complete and before map l is belongs to the stage of map l. The stem ends where
    the first block begins that reaches the finest map's size; if the very first layer does, it alone is the stem.

    Returns:
        Paths of the layers of stem, C2, C3, ...: every module that has parameters of its own or no children.
    """
    trace = _Trace(trunk)
    layers = _layers(trunk)
    first_with_weights = min(
        (path for path in layers if any(True for _ in trunk.get_submodule(path).parameters(recurse=False)) and path),
        key=trace.start,
    )
    stem_end = trace.stem_end(layers, first_with_weights)
    stages: list[list[str]] = [[] for _ in range(len(trace.map_ends) + 1)]
    for path in layers:
        start = trace.start(path)
        stages[0 if start < stem_end else 1 + min(bisect_right(trace.map_ends, start), len(stages) - 2)].append(path)
    return stages


def _layers(network: nn.Module) -> list[str]:
    """Paths of the modules that have parameters of their own or no children."""
    return [
        path
        for path, module in network.named_modules()
        if not any(True for _ in module.children()) or any(True for _ in module.parameters(recurse=False))
    ]


class _Trace:
    """One forward pass: when each module first began (a running number), and when each map was complete."""

    def __init__(self, trunk: nn.Module) -> None:
        self.starts: dict[str, int] = {}
        self.sizes: list[tuple[str, torch.Size]] = []
        self._produced: list[tuple[int, Tensor, Any]] = []
        handles = []
        for path, module in trunk.named_modules():
            handles.append(module.register_forward_pre_hook(self._on_start(path)))
            if path:
                handles.append(module.register_forward_hook(self._on_end(path)))
        device = next((parameter.device for parameter in trunk.parameters()), torch.device("cpu"))
        was_training = trunk.training
        try:
            with torch.no_grad():
                self.maps: list[Tensor] = trunk.eval()(torch.zeros(1, 3, 64, 64, device=device))
        finally:
            trunk.train(was_training)
            for handle in handles:
                handle.remove()
        self.map_ends = [self._end(features) for features in self.maps]
        self._produced.clear()

    def _on_start(self, path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self.starts.setdefault(path, len(self.starts))

        return hook

    def _on_end(self, path: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                self._produced.append((len(self.starts), output, inputs[0] if inputs else None))
                if output.dim() == 4:
                    self.sizes.append((path, output.shape[-2:]))

        return hook

    def _end(self, features: Tensor) -> int:
        """How many modules had begun when this map was complete."""
        # A tensor can come out of several modules: of those that change it in place, of the block around them and, once
        # it is complete, of modules that only pass it on. The last one that did not also take it in completes it.
        ends = [
            end for end, output, module_input in self._produced if output is features and module_input is not features
        ]
        if not ends:  # a view of what a module made (another order of axes, a crop): the last one on the same memory
            memory = features.untyped_storage().data_ptr()
            ends = [end for end, output, _ in self._produced if output.untyped_storage().data_ptr() == memory]
        return ends[-1] if ends else len(self.starts)

    def start(self, path: str) -> int:
        """When a module began; if it is never called itself, its first part, or else what contains it."""
        if path in self.starts:
            return self.starts[path]
        inside = [start for other, start in self.starts.items() if other.startswith(f"{path}.")]
        if inside:
            return min(inside)
        return self.start(path.rpartition(".")[0]) if path else 0

    def stem_end(self, layers: Sequence[str], first: str) -> int:
        """When the first block begins that reaches the finest map's size."""
        leaves = set(layers)
        goal = self.maps[0].shape[-2:]
        reaching = next((path for path, size in self.sizes if path in leaves and size == goal), first)
        if reaching == first:
            return self.start(first) + 1
        names = reaching.split(".")
        blocks = (".".join(names[:depth]) for depth in range(1, len(names) + 1))
        return self.start(next(block for block in blocks if not f"{first}.".startswith(f"{block}.")))


def freeze_stages(trunk: nn.Module, stages: Sequence[Sequence[str]], frozen_stages: int) -> None:
    """Stop gradients in the first stages (0 = none, 1 = stem, ..., 5 = all)."""
    for stage in stages[:frozen_stages]:
        for path in stage:
            for parameter in trunk.get_submodule(path).parameters(recurse=False):
                parameter.requires_grad_(False)


def dilate_stage(trunk: nn.Module, stage: Sequence[str]) -> int:
    """Undo the stride of a stage, in place, and let its kernels see as far as before ("DC5", dilated C5).

    Strides become 1 and the convolutions' dilation doubles, in all blocks alike, as in detectron2's RES5_DILATION
    (torchvision leaves the first block undilated). Before batch norms are frozen.

    Returns:
        How many convolutions were dilated.
    """
    count = 0
    for path in stage:
        module = trunk.get_submodule(path)
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if max(module.kernel_size) > 1:
                same = same_pads(module.kernel_size, module.dilation)
                module.dilation = tuple(2 * step for step in module.dilation)
                if module.padding == same:
                    module.padding = same_pads(module.kernel_size, module.dilation)
                count += 1
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d) and module.stride not in (1, (1, 1)):
            kernel = module.kernel_size if isinstance(module.kernel_size, int) else module.kernel_size[0]
            if kernel % 2:
                module.stride = 1
            else:  # an even window has no centre: without its stride it only blurs
                parent, _, name = path.rpartition(".")
                setattr(trunk.get_submodule(parent), name, nn.Identity())
    return count
