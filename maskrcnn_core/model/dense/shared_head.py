"""A dense head whose classes and boxes share their convolutions.

With one class (an object or none) it is the head of a Region Proposal Network (Faster R-CNN, section 3).
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskrcnn_core.kernels.gpu.availability import use_kernels
from maskrcnn_core.layers.convolve import convolve
from maskrcnn_core.model.dense.head import at_anchors
from maskrcnn_core.model.dense.sampled_outputs import outputs_at
from maskrcnn_core.structures import DenseOutputs


class SharedHead(nn.Module):
    """3x3 convolutions shared by all levels, then 1x1 predictors of logits and deltas.

    Args:
        channels: of every level.
        num_anchors: at each position.
        num_convs: 3x3 convolutions before the predictors.
        num_classes: K, logits of an anchor.
    """

    def __init__(self, channels: int, num_anchors: int, num_convs: int, num_classes: int = 1) -> None:
        super().__init__()
        self.num_anchors, self.num_classes = num_anchors, num_classes
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_convs))
        self.logits = nn.Conv2d(channels, num_anchors * num_classes, 1)
        self.deltas = nn.Conv2d(channels, num_anchors * 4, 1)
        for module in (*self.convs, self.logits, self.deltas):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)

    def at(self, maps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward` of some anchors only, with gradients at little cost where there is one convolution.

        Args:
            maps: levels [N, C, H_l, W_l].
            index: [N, S] into the anchors of all levels.

        Returns:
            Logits [N, S, K], deltas [N, S, 4].
        """
        conv = self.convs[0]
        if len(self.convs) == 1 and isinstance(conv, nn.Conv2d):
            return outputs_at(conv, self.logits, self.deltas, self.num_anchors, maps, index, fixed_size=index.is_cuda)
        return at_anchors(self(maps), index)

    def forward(self, maps: Sequence[Tensor]) -> DenseOutputs:
        """Levels [N, C, H_l, W_l] -> outputs of their A_l = H_l * W_l * num_anchors anchors, position-major as in
        `anchors.pyramid_anchors`."""
        logits, deltas = [], []
        joined = self._joined_predictors() if use_kernels(maps[0], "convolution") else None
        for features in maps:
            # The tower is the same for every level.
            for conv in self.convs:
                features = convolve(conv, features, relu=True)
            # Anchors of a position stand together: [N, C, H, W] -> [N, H * W * A, ...].
            if joined is not None:
                both = functional.linear(features.permute(0, 2, 3, 1), *joined)
                level_logits, level_deltas, _ = both.split(self._joined_widths(), dim=-1)
            else:
                level_logits = self.logits(features).permute(0, 2, 3, 1)
                level_deltas = self.deltas(features).permute(0, 2, 3, 1)
            logits.append(level_logits.reshape(len(features), -1, self.num_classes))
            deltas.append(level_deltas.reshape(len(features), -1, 4))
        return DenseOutputs(logits, deltas)

    def _joined_widths(self) -> tuple[int, int, int]:
        """Outputs of the joined predictors: logits, deltas, padding."""
        logits, deltas = self.logits.out_channels, self.deltas.out_channels
        return logits, deltas, -(logits + deltas) % 16

    def _joined_predictors(self) -> tuple[Tensor, Tensor]:
        """Weights and bias of both predictors as one linear layer: a GPU's matrix units take no fewer than 8 outputs,
        or 16 at full rate, so that each alone would waste most of its time."""
        weights = [layer.weight.flatten(1) for layer in (self.logits, self.deltas)]
        biases = [cast(Tensor, layer.bias) for layer in (self.logits, self.deltas)]
        padding = self._joined_widths()[2]
        weight = torch.cat((*weights, weights[0].new_zeros(padding, weights[0].shape[1])))
        return weight, torch.cat((*biases, biases[0].new_zeros(padding)))
