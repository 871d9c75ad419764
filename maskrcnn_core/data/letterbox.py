"""An image in the middle of a rectangle of another aspect, with grey around it, as darknet lays it (`letterbox_image`).

Sides and margins are whole numbers, rounded down, so that everybody finds the same place from the sizes alone.
"""

import torch
from torch import Tensor

GREY = 127.5
"""Of the margins, in all channels, 0..255."""

Size = tuple[int, int]


def letterbox(original: Size, size: Size) -> tuple[Size, Size]:
    """Where an image lies.

    Args:
        original: (height, width) of the image, pixels.
        size: (height, width) of the rectangle.

    Returns:
        (height, width) of the resized image, and (top, left), the margins above it and left of it.
    """
    (height, width), (most_down, most_across) = original, size
    if most_across * height < most_down * width:
        inner = max(1, height * most_across // width), most_across
    else:
        inner = most_down, max(1, width * most_down // height)
    return inner, ((most_down - inner[0]) // 2, (most_across - inner[1]) // 2)


def letterboxes(originals: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """`letterbox` of many images: [N, 2] and [N, 2] int64 -> [N, 2] and [N, 2]. A device is not waited for."""
    (height, width), (most_down, most_across) = originals.unbind(1), sizes.unbind(1)
    is_wide = most_across * height < most_down * width
    down = torch.where(is_wide, (height * most_across // width).clamp(min=1), most_down)
    across = torch.where(is_wide, most_across, (width * most_down // height).clamp(min=1))
    inner = torch.stack((down, across), dim=1)
    return inner, (sizes - inner) // 2
