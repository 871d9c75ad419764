"""Keypoints as one-hot heatmaps over a region and back, and left and right in a mirror.

Letters: R regions, P keypoints, S cells a side of a heatmap, M = R * P maps. Coordinates are continuous, as those of
boxes (see `structures`); COCO's files hold the index of a pixel instead, so that their pixel j is drawn at j + 0.5.
"""

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

KeypointRule = Literal["exact", "torchvision"]

_A = -0.75  # of Keys' cubic convolution, as in torch's, OpenCV's and therefore the reference systems' bicubic resizing
_OVERSHOOT = -_A / 4  # the largest sum of the two outer weights' magnitudes, reached midway between two cells
# An untrained head's map on a region of 23 x 35 pixels had 207 bounds above its maximum; 128 intervals missed it.
_INTERVALS_ON_A_GPU = 256
_VALUES_AT_ONCE = 2**22


def mirror_keypoints(names: Sequence[str]) -> tuple[int, ...]:
    """Where each keypoint comes from in a mirrored image: "left_x" and "right_x" change places, others stay.

    The side is a word of its own, anywhere in the name, in full or as one letter: "left_eye", "eye (right)", "R_Hip".
    """
    position = {name: index for index, name in enumerate(names)}
    return tuple(position.get(_other_side(name), index) for index, name in enumerate(names))


_SIDE = re.compile(r"(?<![^\W_])(left|right|l|r)(?![^\W_])", re.IGNORECASE)
_OPPOSITE = {"left": "right", "right": "left", "l": "r", "r": "l"}


def _other_side(name: str) -> str:
    def swapped(match: "re.Match[str]") -> str:
        side = match.group()
        other = _OPPOSITE[side.lower()]
        return other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other

    return _SIDE.sub(swapped, name)


def pixel_offset(rule: KeypointRule) -> float:
    """What is added to the x and y of COCO's files, which are indices of pixels, to make points of the original image.

    Half a pixel, the middle of the pixel, by the `exact` rule (detectron2); nothing by `torchvision`'s, whose models
    have learned without. It is taken off again where keypoints are written.
    """
    return 0.5 if rule == "exact" else 0.0


def scale_keypoints(keypoints: Tensor, from_sizes: Tensor, to_sizes: Tensor) -> Tensor:
    """Keypoints of one frame in another one.

    Args:
        keypoints: [N, D, P, 3] x, y in the first frame, and a third value that stays.
        from_sizes, to_sizes: [N, 2] (height, width) of the two frames.
    """
    ratios = (to_sizes.to(torch.float32) / from_sizes.to(torch.float32)).flip(-1)
    return torch.cat((keypoints[..., :2] * ratios[:, None, None], keypoints[..., 2:]), dim=-1)


def encode_heatmaps(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The heatmap cell in which each keypoint lies (Mask R-CNN, section 5: "one-hot" targets).

    Args:
        keypoints: [R, P, 3] x, y, visibility; in the frame of the boxes.
        boxes: [R, 4] x1, y1, x2, y2.
        size: S.

    Returns:
        cells [R, P] int64 in 0 .. S * S - 1, row-major; counted [R, P] bool: visible (v > 0) and in its region, the
        right and lower edge included. Where it is false the cell is 0.
    """
    starts, ends = boxes[:, None, :2], boxes[:, None, 2:]
    points = keypoints[..., :2]
    cells = ((points - starts) * (size / (ends - starts).clamp(min=1e-6))).floor()
    cells = torch.where(points == ends, size - 1.0, cells).clamp(-1, size).to(torch.int64)
    counted = ((cells >= 0) & (cells < size)).all(dim=-1) & (keypoints[..., 2] > 0)
    return torch.where(counted, cells[..., 1] * size + cells[..., 0], 0), counted


def decode_heatmaps(
    heatmaps: Tensor, boxes: Tensor, *, max_side: int | None = None, fixed_size: bool = False
) -> tuple[Tensor, Tensor]:
    """The position of each heatmap's maximum after bicubic resizing to its region's pixels.

    The same maximum as of the whole resized map (Detectron's rule, also detectron2's and torchvision's), found without
    making it. Between two cells a cubic interpolation rises above the higher one by at most 3/16 of how far that stands
    above its outer neighbours, along each axis. This bounds every interval between cells, and only those whose bound
    passes the best value of the most promising two are resampled. On a GPU, where asking which would stall it, the 256
    of the highest bounds are. They held the maximum of every map of a head that was tried, also of an untrained one's;
    of noise that was not enlarged, as a head's maps are, they may miss it.

    Args:
        heatmaps: [R, P, S, S] logits.
        boxes: [R, 4] x1, y1, x2, y2.
        max_side: no region is longer than this many pixels; the side of the input will do. On a CPU it is measured.
        fixed_size: look at the 256 highest bounds as on a GPU, with no shape that depends on data, and take `max_side`
            as given.

    Returns:
        points [R, P, 3]: x, y in the frame of the boxes at pixel centres, and the softmax probability there, at most 1
        (normalised over the S x S cells, so that it doesn't depend on the region's size; detectron2's score).
        logits [R, P]: the resized map's value there (torchvision's score).
    """
    num_regions, num_keypoints, side = heatmaps.shape[:3]
    if num_regions == 0 or num_keypoints == 0:
        return heatmaps.new_zeros(num_regions, num_keypoints, 3), heatmaps.new_zeros(num_regions, num_keypoints)
    maps, boxes = heatmaps.detach().float().flatten(0, 1), boxes.detach().float()
    lengths = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0)
    pixels = lengths.ceil()
    if max_side is None or not fixed_size:
        max_side = int(pixels.max())
    pixels_of_map = pixels.repeat_interleave(num_keypoints, dim=0)
    step = -(-max_side // side) + 1  # most pixels between two cells
    with torch.autocast(maps.device.type, enabled=False):
        values, columns, rows = _find_maxima(maps, pixels_of_map, step, _INTERVALS_ON_A_GPU if fixed_size else None)
    positions = torch.stack((columns, rows), dim=-1).view(num_regions, num_keypoints, 2)
    # A pixel of the resized map is a little narrower than one of the image where the region's sides are no integers.
    points = boxes[:, None, :2] + (positions + 0.5) * (lengths / pixels)[:, None]
    probabilities = (values - maps.flatten(1).logsumexp(dim=1)).exp().clamp(max=1.0)
    points = torch.cat((points, probabilities.view(num_regions, num_keypoints, 1)), dim=-1)
    return points, values.view(num_regions, num_keypoints)


def _find_maxima(maps: Tensor, pixels: Tensor, step: int, intervals: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum of each map resized to its pixels: value, column and row, [M] each.

    Args:
        maps: [M, S, S]; pixels: [M, 2] width and height of the resized map; step: most pixels in an interval and axis.
        intervals: look at this many of the highest bounds; None = at all that could hold the maximum.
    """
    padded = functional.pad(maps[None], (2, 2, 2, 2), mode="replicate")[0]
    bounds = _upper_bounds(padded, pixels)
    promising = bounds.topk(min(intervals or 2, bounds.shape[1]), dim=1).indices
    owners = torch.arange(len(maps), device=maps.device)[:, None].expand_as(promising)
    values, positions = _best_of(padded, pixels, owners.flatten(), promising.flatten(), step)
    if intervals is None:
        rounding = 1e-5 * (1.0 + values.abs())
        owners, promising = (
            (bounds.scatter(1, promising, torch.inf) >= (values - rounding)[:, None]).nonzero().unbind(1)
        )
        values, positions = _best_of(padded, pixels, owners, promising, step)
    rows = torch.div(positions, pixels[:, 0], rounding_mode="floor")
    return values, positions - rows * pixels[:, 0], rows


def _upper_bounds(padded: Tensor, pixels: Tensor) -> Tensor:
    """[M, (S + 1)^2]: no pixel in an interval has a higher value; -inf where there is no pixel.

    Interval i of an axis lies between the cells i - 1 and i; the first and the last end at the map's edge.
    """
    upper, lower = _axis_bounds(padded, padded, dim=2)
    upper, _ = _axis_bounds(upper, lower, dim=1)
    side = padded.shape[1] - 4
    edges = torch.arange(-1, side + 1, device=padded.device, dtype=padded.dtype)
    # Pixel k lies at (k + 0.5) * S / pixels - 0.5 in units of cells.
    first = ((edges + 0.5) * (pixels[..., None] / side) - 0.5 - 1e-3).ceil().clamp(min=0)
    first = torch.minimum(first, pixels[..., None])
    occupied = (first[..., 1:] - first[..., :-1] > 0) | ((pixels > side)[..., None])
    occupied[..., -1] |= first[..., -2] < pixels
    upper = torch.where(occupied[:, 1, :, None] & occupied[:, 0, None, :], upper, -torch.inf)
    return upper.flatten(1)


def _axis_bounds(upper: Tensor, lower: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Bounds of a cubic interpolation between neighbours along `dim`, from bounds of the cells."""
    intervals = upper.shape[dim] - 3
    highs, lows = ([x.narrow(dim, start, intervals) for start in range(4)] for x in (upper, lower))
    high = torch.maximum(highs[1], highs[2])
    low = torch.minimum(lows[1], lows[2])
    above = (high - torch.minimum(lows[0], lows[3])).clamp(min=0)
    below = (torch.maximum(highs[0], highs[3]) - low).clamp(min=0)
    return high + _OVERSHOOT * above, low - _OVERSHOOT * below


def _best_of(padded: Tensor, pixels: Tensor, owners: Tensor, intervals: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Highest pixel of each map within the given intervals: value and position in reading order, [M] each.

    Args:
        padded: [M, S + 4, S + 4]; pixels: [M, 2]; step: as in `_find_maxima`.
        owners, intervals: [C] int64, the map and the interval of each candidate.
    """
    at_once = max(_VALUES_AT_ONCE // (step * step), 1)
    parts = [
        _resample(padded, pixels, *part, step)
        for part in zip(owners.split(at_once), intervals.split(at_once), strict=True)
    ]
    values, positions = (torch.cat(column) for column in zip(*parts, strict=True))
    best = values.new_full((len(padded),), -torch.inf).scatter_reduce(0, owners, values, "amax")
    # Of equal maxima the first in reading order, as an argmax over the whole map gives.
    positions = torch.where(values == best[owners], positions, torch.inf)
    return best, torch.full_like(best, torch.inf).scatter_reduce(0, owners, positions, "amin")


def _resample(padded: Tensor, pixels: Tensor, owners: Tensor, intervals: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Highest pixel of each interval: value and position in reading order, [C] each; -inf where it holds no pixel."""
    width = padded.shape[-1]
    side = width - 4
    top, left = intervals // (side + 1), intervals % (side + 1)
    taps = torch.arange(4, device=padded.device)
    corner = (owners * width + top) * width + left
    cells = padded.flatten()[corner[:, None, None] + taps[:, None] * width + taps]
    pixels = pixels[owners]
    rows, row_weights, row_real = _pixels_between(top, pixels[:, 1], side, step)
    columns, column_weights, column_real = _pixels_between(left, pixels[:, 0], side, step)
    values = row_weights @ cells @ column_weights.transpose(-1, -2)  # [C, step, step]
    values = torch.where(row_real[:, :, None] & column_real[:, None, :], values, -torch.inf).flatten(1)
    best = values.amax(dim=1)
    positions = rows[:, :, None] * pixels[:, 0, None, None] + columns[:, None, :]
    return best, torch.where(values == best[:, None], positions.flatten(1), torch.inf).amin(dim=1)


def _pixels_between(intervals: Tensor, pixels: Tensor, side: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of an axis that lie in the intervals, their cubic weights for the interval's four cells, which are real.

    Args:
        intervals: [C] int64, see `_upper_bounds`; pixels: [C]; side: S.

    Returns:
        [C, step] float, [C, step, 4] and [C, step] bool.
    """
    lower_cell = (intervals - 1).to(pixels.dtype)
    scale = side / pixels
    # One thousandth of a pixel early rather than late: a pixel on the border of two intervals has its value in both.
    first = ((lower_cell + 0.5) / scale - 0.5 - 1e-3).ceil()
    positions = first[:, None] + torch.arange(step, device=pixels.device, dtype=pixels.dtype)
    fraction = (positions + 0.5) * scale[:, None] - 0.5 - lower_cell[:, None]
    real = (positions >= 0) & (positions < pixels[:, None]) & (fraction <= 1.001)
    fraction = fraction.clamp(0.0, 1.0)
    return positions, _cubic_weights(fraction), real


def _cubic_weights(fraction: Tensor) -> Tensor:
    """[...] 0..1 between two cells -> [..., 4] weights of the two and their outer neighbours (Keys, 1981)."""
    rest = 1.0 - fraction
    near = [((_A + 2) * t - (_A + 3)) * t * t + 1 for t in (fraction, rest)]
    return torch.stack((_A * fraction * rest * rest, near[0], near[1], _A * rest * fraction * fraction), dim=-1)
