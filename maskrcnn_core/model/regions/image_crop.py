"""Image crops: the transform of R-CNN, which warps each region's own pixels to one size (Girshick et al., CVPR 2014,
section 2.3 and appendix A).

The filter is that of Pillow's bilinear `resize`, a triangle as wide as the crop is reduced, so that a crop without
context of whole pixels is what Pillow's `crop` and `resize` give. Nothing is rounded to whole pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskrcnn_core.model.losses import full_precision
from maskrcnn_core.structures import ImageFeatures

# Regions whose filters are in memory at once; on a GPU, beside each of them, its image.
_AT_ONCE = 32


class ImageCrop(nn.Module):
    """Each region's pixels, warped to a square, with some of what lies around it.

    `aligned` is true: pixels are taken at their centres.

    Args:
        bins: side of the square, pixels.
        context: width of the frame around the region within it, pixels (R-CNN: 16 of 227).
    """

    def __init__(self, bins: int, context: int) -> None:
        super().__init__()
        self.bins, self.context, self.aligned = bins, context, True

    def maps(self, features: ImageFeatures) -> Sequence[Tensor]:
        """The pixels of the batch."""
        return [features.pixels]

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Crops of the regions.

        Args:
            maps: the pixels [N, 3, H, W] alone.
            boxes: [R, 4] in input pixels; image_index: [R] int64.

        Returns:
            [R, 3, bins, bins]; 0, which is the mean of normalised pixels, outside of the image.
        """
        pixels = maps[0]
        if len(boxes) == 0:
            return pixels.new_zeros(0, pixels.shape[1], self.bins, self.bins)
        windows, table = windows_around(boxes.float(), self.bins, self.context), full_precision(pixels)
        pieces = [
            crop_windows(table, part, images, self.bins, fixed_size=boxes.is_cuda)
            for part, images in zip(windows.split(_AT_ONCE), image_index.split(_AT_ONCE), strict=True)
        ]
        return torch.cat(pieces).to(pixels.dtype)


def windows_around(boxes: Tensor, size: int, context: int) -> Tensor:
    """The boxes with so much around them that it makes `context` of `size` pixels on each side: [R, 4] -> [R, 4]."""
    # Exactly the boxes where there is none.
    margin = (boxes[:, 2:] - boxes[:, :2]) * (context / (size - 2 * context))
    return torch.cat((boxes[:, :2] - margin, boxes[:, 2:] + margin), dim=1)


def crop_windows(pixels: Tensor, windows: Tensor, image_index: Tensor, size: int, *, fixed_size: bool) -> Tensor:
    """Windows of images, resized to squares.

    Args:
        pixels: [N, C, H, W]; outside of them everything is 0.
        windows: [R, 4], R > 0, in pixels; image_index: [R] int64.
        fixed_size: no shape depends on data.

    Returns:
        [R, C, size, size].
    """
    height, width = pixels.shape[-2:]
    # What each row and column of the output is made of: [R, size, H] and [R, size, W].
    down = triangle_weights(windows[:, 1], windows[:, 3], height, size)
    across = triangle_weights(windows[:, 0], windows[:, 2], width, size)
    if fixed_size:
        images = pixels.index_select(0, image_index)  # [R, C, H, W]
        return torch.matmul(torch.matmul(down[:, None], images), across[:, None].transpose(2, 3))
    # Pixels that the windows touch, each window's own.
    first = windows[:, :2].floor().clamp(min=0).long().tolist()
    last = _ends(windows[:, :2], windows[:, 2:]).long().tolist()
    crops = []
    for region, (image, (x, y), (right, bottom)) in enumerate(zip(image_index.tolist(), first, last, strict=True)):
        rows, columns = slice(y, max(bottom, y)), slice(x, max(right, x))
        part = pixels[image, :, rows, columns]
        crops.append(down[region, :, rows] @ (part @ across[region, :, columns].t()))
    return torch.stack(crops)


def triangle_weights(low: Tensor, high: Tensor, length: int, size: int) -> Tensor:
    """Weights of the pixels of one axis in each place of the output, those of Pillow's bilinear filter.

    Args:
        low, high: [R], the windows' borders, pixels.
        length: pixels of the image along the axis.
        size: places of the output.

    Returns:
        [R, size, length]; the sum of a place is 1 where its filter lies inside the image, and less where it sees pixels
        outside, whose value is 0.
    """
    step = (high - low) / size
    reach = step.clamp(min=1.0)[:, None]  # of the filter on either side
    centres = low[:, None] + (torch.arange(size, device=low.device) + 0.5) * step[:, None]  # [R, size]
    # The pixels that the window touches, within the image and beyond: first to last - 1.
    first, last = low.floor()[:, None], _ends(low, high)[:, None]
    places = torch.arange(length, device=low.device) + 0.5  # centres of pixels
    distances = (places - centres[..., None]).abs() / reach[..., None]
    touched = (places > first[..., None]) & (places < last[..., None])
    weights = torch.where(touched, (1.0 - distances).clamp(min=0.0), 0.0)
    return weights / _sum_of_triangle(centres, reach, first, last)[..., None]


def _ends(low: Tensor, high: Tensor) -> Tensor:
    """The pixel after the last that a window touches; an empty one touches the pixel that it lies in."""
    return torch.maximum(high.ceil(), low.floor() + 1.0)


def _sum_of_triangle(centres: Tensor, reach: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Sum of the filter over pixels `first` .. `last` - 1, whether they are in the image or not: [R, size].

    Two arithmetic series, of the pixels up to the filter's middle and of those after it.
    """
    middle = centres - 0.5  # where the centre of pixel p is p
    turn = torch.minimum(torch.maximum(middle.floor() + 1.0, first), last)  # first pixel right of the middle
    left = torch.maximum((middle - reach).floor() + 1.0, first)
    right = torch.minimum((middle + reach).ceil(), last)
    before, after = (turn - left).clamp(min=0), (right - turn).clamp(min=0)
    sum_before = before * (1.0 - (middle - 0.5 * (left + turn - 1.0)) / reach)
    sum_after = after * (1.0 - (0.5 * (turn + right - 1.0) - middle) / reach)
    return (sum_before + sum_after).clamp(min=1e-6)
