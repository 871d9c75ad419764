"""SSD's default boxes (Liu et al., ECCV 2016, section 2.2) as a table of sides, as Caffe and torchvision make them."""

import math
from collections.abc import Sequence

Priors = tuple[tuple[tuple[float, float], ...], ...]


def default_boxes(sizes: Sequence[float], ratios: Sequence[Sequence[float]], limit: float = math.inf) -> Priors:
    """Width and height of the boxes at each position of each level, pixels.

    Args:
        sizes: side of each level's first square, and one more: each level's second square has the mean of its own and
            the next one's on a logarithmic scale.
        ratios: of each level's further boxes, width / height; each is followed by its reverse.
        limit: no side is longer (torchvision: that of the image).
    """
    levels = []
    for size, following, level_ratios in zip(sizes[:-1], sizes[1:], ratios, strict=True):
        sides = [(size, size), (math.sqrt(size * following),) * 2]
        for ratio in level_ratios:
            wide = size * math.sqrt(ratio), size / math.sqrt(ratio)
            sides += [wide, wide[::-1]]
        levels.append(tuple((min(width, limit), min(height, limit)) for width, height in sides))
    return tuple(levels)
