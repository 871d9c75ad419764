"""Exponential moving average of the weights: smoother than those of the last step, and mostly better.

The decay warms up as in TensorFlow's ExponentialMovingAverage with `num_updates`: min(decay, (1 + n) / (10 + n)) after
n steps, so that the average does not stand at the weights of the beginning.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class MovingAverage:
    """Average of a network's learnt weights and of its running statistics.

    Args:
        network: at the beginning; its weights are copied.
        decay: at the end, below 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network, self._decay = network, decay
        frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        self._average = {
            name: value.detach().clone()
            for name, value in network.state_dict().items()
            if value.is_floating_point() and name not in frozen
        }

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Move towards the network's weights, `steps` optimisation steps after its beginning (this one counted)."""
        # Warm-up, see the module.
        decay = min(self._decay, (1.0 + steps) / (10.0 + steps))
        # average = decay * average + (1 - decay) * current, of all tensors at once.
        current = self._network.state_dict()
        torch._foreach_lerp_(list(self._average.values()), [current[name] for name in self._average], 1.0 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The network's state dict with the average in place of what is averaged."""
        return {**self._network.state_dict(), **self._average}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        for name, value in self._average.items():
            value.copy_(state[name])
