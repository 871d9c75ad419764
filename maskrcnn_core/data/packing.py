"""Images of any sizes in one piece of memory, so that one copy brings all of them to another process or a device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, int]


def pack(images: Sequence[Tensor], dtype: torch.dtype, *, pinned: bool = False) -> Tensor:
    """The values of images, one image after the other: [B] of type `dtype`.

    Args:
        images: of any shapes.
        pinned: in page-locked memory, from which a GPU copies while the host goes on.
    """
    flat = torch.empty(sum(image.numel() for image in images), dtype=dtype, pin_memory=pinned)
    start = 0
    for image in images:
        part = flat[start : start + image.numel()].view(image.shape)
        if image.dtype == dtype and dtype != torch.bfloat16:
            # By numpy: torch would share a copy among its threads, and every thread that does so keeps a team of them.
            np.copyto(part.numpy(), image.numpy())
        else:
            part.copy_(image)
        start += image.numel()
    return flat
