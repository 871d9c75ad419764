"""What every worker has made, on the first one."""

from typing import Any, TypeVar

import torch.distributed as dist

_Part = TypeVar("_Part")


def gather_to_first(part: _Part, *, rank: int, world_size: int) -> list[_Part]:
    """The parts of all workers in the order of their ranks, on the first one; an empty list on the others.

    Every worker has to call it. Nothing is sent to those that have no use for it: the records of 5000 images are some
    100 MB.

    Args:
        part: of this worker; anything that can be pickled.
        rank, world_size: of this worker.
    """
    if world_size == 1:
        return [part]
    parts: list[Any] | None = [None] * world_size if rank == 0 else None
    dist.gather_object(part, parts, dst=0)
    return parts or []
