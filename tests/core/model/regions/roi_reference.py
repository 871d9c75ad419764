"""RoI transforms as nested loops over one region, and the maps and regions that they are compared on."""

import math

import torch
from torch import Tensor

STRIDES = (4, 8, 16, 32)

BOXES = torch.tensor(
    [
        [10.0, 12, 50, 40],
        [0, 0, 192, 128],
        [3, 90, 190, 127],
        [-40, -30, 30, 20],  # beyond the left and upper border
        [150, 100, 260, 200],  # beyond the right and lower border
        [400, 400, 460, 470],  # wholly outside
        [20, 20, 20.3, 20.2],  # smaller than a cell
        [60, 60, 60, 60],  # empty
        [0, 0, 192, 3],
        [-301.3, -299.1, 503.7, 498.9],
        [2, 6, 30, 22],  # halves of a cell at every stride
    ],
    dtype=torch.float64,
)
IMAGES = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0])
LEVELS = torch.tensor([0, 3, 2, 0, 1, 1, 0, 2, 1, 3, 0])
OUTSIDE = 5  # the box that lies wholly outside


def pyramid(channels: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Of a 128 x 192 input, two images; a fifth level that is not to be used."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(128 // stride, 192 // stride) for stride in (*STRIDES, 64)]
    return [torch.randn(2, channels, *size, generator=generator, dtype=dtype) for size in sizes]


def sampled(features: Tensor, y: float, x: float) -> Tensor:
    """[C, H, W] at one point: zero beyond one cell outside, the border's value within it, bilinear inside."""
    height, width = features.shape[-2:]
    if y < -1 or y > height or x < -1 or x > width:
        return torch.zeros(len(features), dtype=features.dtype)
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = (1 - dx) * features[:, top, left] + dx * features[:, top, right]
    lower = (1 - dx) * features[:, bottom, left] + dx * features[:, bottom, right]
    return (1 - dy) * upper + dy * lower


def slow_roi_align(
    features: Tensor, box: list[float], resolution: int, samples: int, aligned: bool, reduction: str = "average"
) -> Tensor:
    """RoIAlign of one region, in cells of the map (Mask R-CNN, figure 3); samples 0 = one for each cell of a bin."""
    offset = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (value - offset for value in box)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    down = samples or math.ceil(height / resolution)
    across = samples or math.ceil(width / resolution)
    bin_height, bin_width = height / resolution, width / resolution
    output = torch.zeros(len(features), resolution, resolution, dtype=features.dtype)
    for i in range(resolution):
        for j in range(resolution):
            values = []
            for a in range(down):
                for b in range(across):
                    y = y1 + i * bin_height + (a + 0.5) * bin_height / down
                    x = x1 + j * bin_width + (b + 0.5) * bin_width / across
                    values.append(sampled(features, y, x))
            if values:
                bin_values = torch.stack(values)
                output[:, i, j] = bin_values.mean(dim=0) if reduction == "average" else bin_values.amax(dim=0)
    return output


def rounded(value: float) -> int:
    """To the nearest whole number, halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def slow_roi_pool(features: Tensor, box: list[float], resolution: int) -> Tensor:
    """RoIPool of one region, in cells of the map: maximum over whole cells (Fast R-CNN, section 2.1)."""
    left, top, right, bottom = (rounded(value) for value in box)
    height, width = max(bottom - top + 1, 1), max(right - left + 1, 1)
    output = torch.zeros(len(features), resolution, resolution, dtype=features.dtype)
    for i in range(resolution):
        for j in range(resolution):
            rows = range(top + math.floor(i * height / resolution), top + math.ceil((i + 1) * height / resolution))
            columns = range(left + math.floor(j * width / resolution), left + math.ceil((j + 1) * width / resolution))
            cells = [
                features[:, row, column]
                for row in rows
                for column in columns
                if 0 <= row < features.shape[1] and 0 <= column < features.shape[2]
            ]
            if cells:
                output[:, i, j] = torch.stack(cells).amax(dim=0)
    return output


def slow_roi_warp(features: Tensor, box: list[float], resolution: int, samples: int, reduction: str) -> Tensor:
    """RoIWarp of one region, in cells of the map: the cells that RoIPool takes, sampled as RoIAlign samples them."""
    left, top, right, bottom = (rounded(value) for value in box)
    whole = [left, top, max(right, left) + 1, max(bottom, top) + 1]
    return slow_roi_align(features, [float(side) for side in whole], resolution, samples, True, reduction)
