"""Boxes of one object averaged into one, pair by pair (OverFeat: Sermanet et al., ICLR 2014, section 4.3)."""

import torch
from torch import Tensor

from maskrcnn_core.boxes import pairwise_iou


def average_pairs(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, min_closeness: float, *, fixed_size: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Again and again the two boxes that are closest become one, with the average of their coordinates and the sum of
    their scores, until no two are close.

    The paper's match score adds the distance of the centres and the area of the intersection. Here both are relative to
    the boxes, since pixels and their squares have no common unit: see `closeness`.

    Args:
        boxes: [N, M, 4]; scores: [N, M] of 0 or more.
        groups: [N, M] int64, boxes of different groups stay apart.
        valid: [N, M] bool, other slots stay as they are.
        min_closeness: pairs that are not closer than this stay two.
        fixed_size: M - 1 steps whatever the data, so that nothing waits for the device; else as many as the image with
            the most pairs needs.

    Returns:
        Boxes [N, M, 4], sums of scores [N, M], and which slots are left, [N, M]: a merged box stands in the earlier of
        the two.
    """
    num_images, num_boxes = scores.shape
    boxes, scores, valid = boxes.clone(), scores.clone(), valid.clone()
    together = (groups[:, :, None] == groups[:, None, :]) & valid[:, :, None] & valid[:, None, :]
    apart = torch.eye(num_boxes, dtype=torch.bool, device=boxes.device)
    close = torch.where(together & ~apart, closeness(boxes, boxes), -torch.inf)
    rows = torch.arange(num_images, device=boxes.device)
    for _ in range(num_boxes - 1):
        # The closest pair of each image; the earlier box keeps its slot.
        best, pair = close.flatten(1).max(dim=1)
        merge = best > min_closeness
        if not fixed_size and not bool(merge.any()):
            break
        one, other = pair // num_boxes, pair % num_boxes
        kept, gone = torch.minimum(one, other), torch.maximum(one, other)
        mean = 0.5 * (boxes[rows, kept] + boxes[rows, gone])
        boxes[rows, kept] = torch.where(merge[:, None], mean, boxes[rows, kept])
        scores[rows, kept] += torch.where(merge, scores[rows, gone], 0.0)
        scores[rows, gone] = torch.where(merge, 0.0, scores[rows, gone])
        valid[rows, gone] &= ~merge
        # How close the new box is to the others; the other one is gone.
        new = closeness(boxes[rows, kept][:, None], boxes)[:, 0]
        new = torch.where((close[rows, kept] > -torch.inf) & valid, new, -torch.inf)
        new = torch.where(merge[:, None], new, close[rows, kept])
        close[rows, kept] = new
        close[rows, :, kept] = new
        none = torch.where(merge[:, None], -torch.inf, close[rows, gone])
        close[rows, gone] = none
        close[rows, :, gone] = none
    return boxes, scores, valid


def closeness(first: Tensor, second: Tensor) -> Tensor:
    """IoU less the distance of the centres in units of the two boxes' mean diagonal: [..., A, 4], [..., B, 4] ->
    [..., A, B], 1 where equal, below 0 where apart."""
    centres = [0.5 * (boxes[..., :2] + boxes[..., 2:]) for boxes in (first, second)]
    diagonals = [(boxes[..., 2:] - boxes[..., :2]).square().sum(dim=-1).sqrt() for boxes in (first, second)]
    between = (centres[0][..., :, None, :] - centres[1][..., None, :, :]).square().sum(dim=-1).sqrt()
    unit = 0.5 * (diagonals[0][..., :, None] + diagonals[1][..., None, :])
    return pairwise_iou(first, second) - between / unit.clamp(min=torch.finfo(unit.dtype).tiny)


def summed_score(sums: Tensor) -> Tensor:
    """Sums of scores of any size -> [0, 1) in the same order: s / (1 + s)."""
    return sums / (1.0 + sums)
