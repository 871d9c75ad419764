"""Boxes that depend on an image's size alone: the grid of G-CNN, and sliding windows.

Letters: R boxes, as x, y, width, height in pixels of the image; larger ones first, each size row by row.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float64]

# What is exact on paper, such as (5 - 1) / (1 - 0.5), must not fall below itself in floating point.
_ROUNDING = 1e-9

# Steps grow by this until the windows are few enough; the number of windows falls by about a sixth each time.
_GROWTH = 1.1


def grid_boxes(size: tuple[int, int], cells: Sequence[int], overlaps: Sequence[float]) -> Boxes:
    """A regular grid of boxes at several scales (G-CNN, Najibi et al., CVPR 2016, section 3.2).

    Args:
        size: (height, width) of the image, pixels.
        cells: of each scale, how many boxes side by side fill the image.
        overlaps: of each scale, the most that neighbours share, of a side; the last box ends at the image's edge.

    Returns:
        [R, 4]; R depends on `cells` and `overlaps` alone.
    """
    height, width = size
    scales = []
    for number, overlap in zip(cells, overlaps, strict=True):
        # n boxes of 1 / number lie (1 - overlap) / number apart, or more
        places = math.floor((number - 1) / (1 - overlap) + _ROUNDING) + 1
        scales.append(_placed((height, width), (height / number, width / number), (places, places)))
    return np.concatenate(scales)


def sliding_windows(
    size: tuple[int, int], sides: Iterable[float], ratios: Sequence[float], step: float, most: int
) -> Boxes:
    """Windows of fixed sizes at regular places, and the whole image as the first.

    Args:
        size: (height, width) of the image, pixels.
        sides: square roots of the windows' areas, pixels; windows that exceed the image are left out.
        ratios: heights by widths.
        step: share of its sides that a window moves by, at most; larger where there would be more than `most`.
        most: windows; more come only where one of each size are more.

    Returns:
        [R, 4].
    """
    height, width = size
    shapes = [(side * math.sqrt(ratio), side / math.sqrt(ratio)) for side in sides for ratio in ratios]
    shapes = [(h, w) for h, w in shapes if h <= height and w <= width]
    shapes.sort(key=lambda shape: -shape[0] * shape[1])
    places = _places(size, shapes, step)
    while 1 + sum(rows * columns for rows, columns in places) > most and any(max(one) > 1 for one in places):
        step *= _GROWTH
        places = _places(size, shapes, step)
    whole = np.array([[0.0, 0.0, width, height]])
    return np.concatenate([whole, *(_placed(size, *one) for one in zip(shapes, places, strict=True))])


def _places(size: tuple[int, int], shapes: Sequence[tuple[float, float]], step: float) -> list[tuple[int, int]]:
    """Rows and columns of the places of each shape, no further apart than the step."""
    height, width = size
    return [
        (
            math.ceil((height - h) / (step * h) - _ROUNDING) + 1,
            math.ceil((width - w) / (step * w) - _ROUNDING) + 1,
        )
        for h, w in shapes
    ]


def _placed(size: tuple[int, int], shape: tuple[float, float], places: tuple[int, int]) -> Boxes:
    """Boxes of one shape, evenly spread from edge to edge: rows x columns of them; a single one in the middle."""
    ys, xs = (
        np.linspace(0.0, whole - part, number) if number > 1 else np.array([(whole - part) / 2])
        for whole, part, number in zip(size, shape, places, strict=True)
    )
    corners = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    return np.concatenate([corners, np.broadcast_to([shape[1], shape[0]], corners.shape)], axis=1)
