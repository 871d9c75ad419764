"""What a loss is divided by, where several processes share a batch.

Data-parallel training averages gradients over processes. A loss that each process divides by the number of its own
samples would weigh an image by the company it happens to be in: the same batch would give other losses with another
number of processes. Divided by the mean count over all processes, the average is that of the whole batch, also where
the processes have unequal shares of it.

So every part of the model gives sums and counts, and the detector divides them all at once: processes exchange one
vector in a step, and wait for each other once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

Normalizer = Callable[[Tensor], Tensor]
"""Numbers of samples of this process, [L] -> what its L sums of losses are divided by, [L]."""


@dataclass(frozen=True)
class LossSum:
    """A loss that is not divided yet.

    Attributes:
        total: sum over the samples of this process, scalar float32.
        count: number of these samples, scalar int64.
        weight: factor of the quotient.
        smoothed: what it is divided by instead of the divisor that it is given, such as an average over steps.
    """

    total: Tensor
    count: Tensor
    weight: float = 1.0
    smoothed: Callable[[Tensor], Tensor] | None = None


def divided(sums: Mapping[str, LossSum], count: Normalizer) -> dict[str, Tensor]:
    """The losses, scalars by name; `count` is called once, also where there are none of this process's samples."""
    divisors = count(torch.stack([loss.count for loss in sums.values()]))
    quotients = {
        name: loss.total / (divisor if loss.smoothed is None else loss.smoothed(divisor))
        for (name, loss), divisor in zip(sums.items(), divisors, strict=True)
    }
    return {name: loss if sums[name].weight == 1.0 else sums[name].weight * loss for name, loss in quotients.items()}


def own_count(counts: Tensor) -> Tensor:
    """At least 1 each: for one process."""
    return counts.clamp(min=1)


def mean_count(counts: Tensor) -> Tensor:
    """Samples of all processes / number of processes, never 0; every process has to call it equally often."""
    total = counts.to(torch.float32)
    dist.all_reduce(total)
    return total.clamp(min=1) / dist.get_world_size()
