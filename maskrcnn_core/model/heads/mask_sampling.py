"""RoIAlign with adaptive sampling on crops of masks, at a cost that does not depend on how large a region is.

Adaptive sampling takes as many samples of a bin as it has cells: a region of 600 pixels on a mask of 6 would take
100,000 of each bin. The mean of many samples, however, is a weighted sum of the cells, and along an axis the weights
have a closed form: samples are evenly spaced, so those between two cells are counted by a division, and their mean
place is the middle of the first and the last. Regions with few samples are left to torchvision's operator, whose bits
they keep.

Letters: R regions, one on each crop; S cells of a crop along an axis, M bins.
"""

import torch
import torchvision
from torch import Tensor

from maskrcnn_core.structures import real_or_unit

# Samples of a bin and axis that the operator takes. A mask as large as its box has at most 8 on a region that is
# positive at an IoU of one half: 112 cells, twice, in 28 bins.
_MOST_SAMPLES = 8


def sampled_crops(crops: Tensor, regions: Tensor, bins: int, *, fixed_size: bool = False) -> Tensor:
    """Mean of the samples of each bin of each region.

    Args:
        crops: [R, Sy, Sx] float32.
        regions: [R, 4] x1, y1, x2, y2 in cells of the crop of each; they may reach far beyond it, where it is zero.
        bins: M.
        fixed_size: no shape depends on data.

    Returns:
        [R, M, M].
    """
    # Samples of a bin along each axis: [R, 2].
    counts = ((regions[:, 2:] - regions[:, :2]) / bins).ceil()
    # Not "more than": what is no number must not reach the operator either.
    few = (counts <= _MOST_SAMPLES).all(dim=1)
    # Regions with few samples by the operator: [R, M, M].
    rows = torch.arange(len(crops), device=regions.device, dtype=regions.dtype)[:, None]
    rois = torch.cat((rows, real_or_unit(regions, few)), dim=1)
    sampled: Tensor = torchvision.ops.roi_align(crops[:, None], rois, bins, 1.0, -1, True)[:, 0]
    if fixed_size:
        return torch.where(few[:, None, None], sampled, _weighted(crops, regions, counts, bins))
    # The others by weights, in their rows.
    many = (~few).nonzero()[:, 0]
    if len(many) == 0:
        return sampled
    return sampled.index_copy(0, many, _weighted(crops[many], regions[many], counts[many], bins))


def _weighted(crops: Tensor, regions: Tensor, counts: Tensor, bins: int) -> Tensor:
    """`sampled_crops` by the weights of rows and columns."""
    across = axis_weights(regions[:, 0], regions[:, 2], counts[:, 0], crops.shape[2], bins).to(crops.dtype)
    down = axis_weights(regions[:, 1], regions[:, 3], counts[:, 1], crops.shape[1], bins).to(crops.dtype)
    with torch.autocast(crops.device.type, enabled=False):
        return torch.bmm(torch.bmm(down, crops), across.transpose(1, 2))


def axis_weights(low: Tensor, high: Tensor, counts: Tensor, cells: int, bins: int) -> Tensor:
    """Share of each cell in each bin along one axis: linear interpolation at evenly spaced samples, as RoIAlign's.

    A sample up to one cell beyond the first or the last takes its value, one further out counts as zero.

    Args:
        low, high: [R] ends of the regions in cells, cell c covering c .. c + 1.
        counts: [R] samples of a bin; 0 or less = the region has no extent, and no weights.
        cells: S; bins: M.

    Returns:
        [R, M, S] float64.
    """
    # Where the samples begin, and how far apart they are: [R, 1].
    counts = counts.double().clamp(min=0)[:, None]
    start = (low.double() - 0.5)[:, None]
    step = (high.double() - low.double())[:, None] / (bins * counts.clamp(min=1))
    # Between places -1, 0, .. S of the cells' centres; how many samples of the region lie before each, [R, S + 2].
    places = torch.arange(-1, cells + 1, device=low.device, dtype=torch.float64)
    before = ((places - start) / step.clamp(min=1e-300) - 0.5).ceil()
    # The same, of those that belong to each bin alone, [R, M, S + 2].
    first = torch.arange(bins, device=low.device) * counts
    before = torch.minimum(torch.maximum(before[:, None], first[..., None]), (first + counts)[..., None])
    share = before.diff(dim=2) / counts.clamp(min=1)[..., None]
    # Their mean place, as a fraction of the way from one cell to the next, [R, M, S + 1].
    middle = start[..., None] + step[..., None] * (before[..., 1:] + before[..., :-1]) * 0.5
    fraction = (middle - places[:-1]).clamp(0.0, 1.0)
    # Beyond the first and the last cell all of a sample is that cell's.
    upper, lower = share * fraction, share * (1.0 - fraction)
    weights = upper[..., :-1] + lower[..., 1:]
    weights[..., 0] += lower[..., 0]
    weights[..., -1] += upper[..., -1]
    return weights
