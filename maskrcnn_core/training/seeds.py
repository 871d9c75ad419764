"""Seeds of the random draws that an image's losses need: from the run's seed, the step and the slot in its batch."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def image_seeds(seed: int, step: int, slots: Iterable[int]) -> Tensor:
    """`Targets.seeds` of the images in `slots` of the batch of a step: [N] int64.

    Slots count over the whole batch, so that the draws do not depend on how workers share it.
    """
    return torch.tensor([_hashed(f"{seed}/{step}/{slot}") for slot in slots], dtype=torch.int64)


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
