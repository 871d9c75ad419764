"""What a loss is divided by, where several processes share a batch.

Data-parallel training averages gradients over processes. A loss that each process divides by the number of its own
samples would weigh an image by the company it happens to be in: the same batch would give other losses with another
number of processes. Divided by the mean count over all processes, the average is that of the whole batch, also where
the processes have unequal shares of it.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

Normalizer = Callable[[Tensor], Tensor]
"""Number of samples of this process (scalar) -> what its sum of losses is divided by."""


def own_count(count: Tensor) -> Tensor:
    """At least 1: for one process."""
    return count.clamp(min=1)


def mean_count(count: Tensor) -> Tensor:
    """Samples of all processes / number of processes, never 0; every process has to call it equally often."""
    total = count.to(torch.float32)
    dist.all_reduce(total)
    return total.clamp(min=1) / dist.get_world_size()
