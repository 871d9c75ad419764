"""Geometry of boxes as free functions: overlap, delta coding, clipping, non-maximum suppression.

Boxes are x1, y1, x2, y2 as `structures` states. Leading dimensions broadcast unless a shape is given.
"""

import math

import torch
import torchvision
from torch import Tensor

from maskrcnn_core.kernels.gpu.availability import use_kernels

# A regressed box is at most this much larger than its anchor (1000 / 16 pixels: Fast R-CNN's limit), so that exp
# stays finite.
_MAX_LOG_SCALE = math.log(1000.0 / 16)

# Boxes of one call of non-maximum suppression: its memory grows with the square, here to 128 MB.
_BOXES_AT_ONCE = 1 << 15


def box_areas(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...] area in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _pairwise_intersections(first: Tensor, second: Tensor) -> Tensor:
    # An axis at a time: [A, B] temporaries instead of [A, B, 2], and as few as can be.
    sides = []
    for low, high in ((0, 2), (1, 3)):
        ends = torch.minimum(first[..., :, None, high], second[..., None, :, high])
        sides.append(ends.sub_(torch.maximum(first[..., :, None, low], second[..., None, :, low])).clamp_(min=0))
    return sides[0].mul_(sides[1])


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair: [..., A, 4], [..., B, 4] -> [..., A, B]; 0 where both are empty."""
    intersections = _pairwise_intersections(first, second)
    unions = (box_areas(first)[..., :, None] + box_areas(second)[..., None, :]).sub_(intersections)
    # The union is 0 only where both are empty, and there the intersection is too.
    return intersections.div_(unions.clamp_(min=torch.finfo(unions.dtype).tiny))


def pairwise_coverage(first: Tensor, second: Tensor) -> Tensor:
    """Share of each first box that lies in each second box: [..., A, 4], [..., B, 4] -> [..., A, B]."""
    intersections = _pairwise_intersections(first, second)
    return torch.where(intersections > 0, intersections / box_areas(first)[..., :, None], 0.0)


def encode_deltas(boxes: Tensor, references: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Regression targets that turn `references` into `boxes` (R-CNN, appendix C).

    Args:
        boxes, references: [..., 4] with positive sides; degenerate ones give finite but meaningless values.
        weights: scale of dx, dy, dw, dh.

    Returns:
        [..., 4] dx, dy, dw, dh.
    """
    reference_sizes = (references[..., 2:] - references[..., :2]).clamp(min=1e-6)
    sizes = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
    centres = boxes[..., :2] + 0.5 * sizes
    reference_centres = references[..., :2] + 0.5 * reference_sizes
    shifts = (centres - reference_centres) / reference_sizes
    scales = torch.log(sizes / reference_sizes)
    return torch.cat((shifts, scales), dim=-1) * _row_of(weights, shifts)


def decode_deltas(deltas: Tensor, references: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Boxes from regression output, the inverse of `encode_deltas`: [..., 4], [..., 4] -> [..., 4]."""
    reference_sizes = references[..., 2:] - references[..., :2]
    reference_centres = references[..., :2] + 0.5 * reference_sizes
    if weights != (1.0, 1.0, 1.0, 1.0):
        deltas = deltas / _row_of(weights, deltas)
    centres = deltas[..., :2] * reference_sizes + reference_centres
    half_sizes = 0.5 * torch.exp(deltas[..., 2:].clamp(max=_MAX_LOG_SCALE)) * reference_sizes
    return torch.cat((centres - half_sizes, centres + half_sizes), dim=-1)


def _row_of(values: tuple[float, ...], like: Tensor) -> Tensor:
    """[len(values)] of the type and on the device of `like`, made there: a copy from the host would be waited for."""
    return torch.stack([like.new_full((), value) for value in values])


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes cut at their image's borders.

    Args:
        boxes: [N, ..., 4].
        sizes: [N, 2] (height, width) of each image.
    """
    limits = sizes.flip(-1).to(boxes.dtype).repeat(1, 2)
    limits = limits.reshape(limits.shape[0], *([1] * (boxes.dim() - 2)), 4)
    return torch.minimum(boxes.clamp(min=0), limits)


def have_min_size(boxes: Tensor, min_size: float) -> Tensor:
    """[..., 4] -> [...] bool: both sides are at least `min_size` pixels."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= min_size).all(dim=-1)


def scale_boxes(boxes: Tensor, from_sizes: Tensor, to_sizes: Tensor) -> Tensor:
    """Boxes of one frame in another one.

    Args:
        boxes: [N, D, 4] in the first frame.
        from_sizes, to_sizes: [N, 2] (height, width) of the two frames.
    """
    ratios = (to_sizes.to(torch.float32) / from_sizes.to(torch.float32)).flip(-1).repeat(1, 2)
    return boxes * ratios[:, None]


def suppress(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor,
    max_overlap: float,
    *,
    ranked: bool = False,
    max_kept: int | None = None,
    fixed_size: bool = False,
) -> Tensor:
    """Greedy non-maximum suppression within each group of each image.

    Args:
        boxes: [N, M, 4]; scores: [N, M].
        groups: [N, M] int64, boxes of different groups never suppress each other; None = all are of one.
        valid: [N, M] bool, other slots are neither kept nor suppress.
        max_overlap: IoU above which the weaker of two boxes goes; of equal scores the earlier slot stays.
        ranked: the valid slots of each image come in order of falling score.
        max_kept: the best so many survivors of an image are enough; those after them may be left out. None = all.
        fixed_size: one call for all images and groups, of a size that does not depend on data.

    Returns:
        [N, M] bool, true for the survivors.
    """
    if use_kernels(boxes, "suppression"):
        return _suppress_by_kernel(boxes, scores, groups, valid, max_overlap, ranked=ranked, max_kept=max_kept)
    if groups is None:
        groups = torch.zeros_like(scores, dtype=torch.int64)
    if fixed_size:
        return _suppress_at_once(boxes, scores, groups, valid, max_overlap)
    keep = torch.zeros_like(valid)
    # On a CPU the cost is quadratic within one call, so many small calls beat one large one.
    num_groups = int(groups.max()) + 1 if groups.numel() else 1
    keys = (groups + num_groups * torch.arange(len(groups))[:, None])[valid]
    order = torch.argsort(keys, stable=True)
    slots = valid.flatten().nonzero()[:, 0][order]
    lengths = torch.unique_consecutive(keys[order], return_counts=True)[1].tolist()
    flat_boxes, flat_scores, flat_keep = boxes.reshape(-1, 4), scores.flatten(), keep.view(-1)
    for members in torch.split(slots, lengths):
        if len(members) == 1:
            flat_keep[members] = True
            continue
        flat_keep[members[torchvision.ops.nms(flat_boxes[members], flat_scores[members], max_overlap)]] = True
    return keep


def _suppress_by_kernel(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    valid: Tensor,
    max_overlap: float,
    *,
    ranked: bool,
    max_kept: int | None,
) -> Tensor:
    """`suppress` in one launch that nobody waits for (`kernels/suppression.py`)."""
    from maskrcnn_core.kernels.gpu.suppression import suppress_ranked

    if ranked:
        return suppress_ranked(boxes, groups, valid, max_overlap, max_kept)
    # Stable, so that of equal scores the earlier slot comes first.
    order = torch.where(valid, scores, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    kept = suppress_ranked(
        boxes.gather(1, order[..., None].expand(-1, -1, 4)),
        None if groups is None else groups.gather(1, order),
        valid.gather(1, order),
        max_overlap,
        max_kept,
    )
    return torch.zeros_like(valid).scatter_(1, order, kept)


def _suppress_at_once(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, max_overlap: float) -> Tensor:
    """`suppress` in one call, or one for as many images as its memory allows: groups and images are moved so far apart
    that they cannot overlap. On a GPU torchvision's operator waits once a call, to say how many boxes are left."""
    images_at_once = max(_BOXES_AT_ONCE // max(boxes.shape[1], 1), 1)
    if len(boxes) > images_at_once:
        parts = [slice(start, start + images_at_once) for start in range(0, len(boxes), images_at_once)]
        return torch.cat([_suppress_at_once(boxes[at], scores[at], groups[at], valid[at], max_overlap) for at in parts])
    # In float32 a box moved by a million pixels would be rounded to a sixteenth of one.
    apart = boxes.double()
    span = apart.amax() + 1.0 if apart.numel() else apart.sum()
    num_groups = groups.amax() + 1 if groups.numel() else groups.sum()
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    offsets = (image * num_groups + groups).to(apart.dtype) * span
    # A slot that is not valid becomes an empty box that comes last: it overlaps nothing.
    flat_boxes = torch.where(valid[..., None], apart + offsets[..., None], 0.0).flatten(0, 1)
    flat_scores = torch.where(valid, scores, -1.0).flatten().to(apart.dtype)
    keep = torch.zeros_like(flat_scores, dtype=torch.bool)
    keep.index_fill_(0, torchvision.ops.nms(flat_boxes, flat_scores, max_overlap), True)
    return keep.view_as(valid) & valid


def keep_best(
    keep: Tensor, scores: Tensor, most: int, *, least: int = 0, fixed_size: bool = False
) -> tuple[Tensor, Tensor]:
    """The best of what suppression left in each image.

    Args:
        keep: [N, M] bool, the survivors; scores: [N, M] of 0 or more.
        most: survivors wanted of an image.
        least: slots to return where fewer are real, as far as there are slots.
        fixed_size: as many slots whatever the data.

    Returns:
        Best first, of equal scores the earlier slot: slot [N, D] int64, of which the first `count` [N] int64 of each
        image are survivors. D is min(most, M); unless `fixed_size` only as many as the fullest image needs.
    """
    # Survivors in front, by falling score; the sort is stable, so that ties keep the order of their slots.
    order = torch.sort(torch.where(keep, scores, -1.0), dim=1, descending=True, stable=True).indices[:, :most]
    count = keep.sum(dim=1).clamp(max=order.shape[1])
    if not fixed_size:
        order = order[:, : max([least, *count.tolist()])]
    return order, count


def soft_suppress(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    valid: Tensor,
    *,
    gaussian: bool,
    max_overlap: float,
    sigma: float,
    min_score: float,
    max_kept: int,
    fixed_size: bool = False,
) -> tuple[Tensor, Tensor]:
    """Soft non-maximum suppression within each group of each image (Bodla et al., ICCV 2017, figure 2).

    Box by box, best first; each taken box lowers the scores of those that overlap it instead of dropping them. Scores
    only fall, so the first `max_kept` boxes taken are the best ones, and no further step is needed.

    Args:
        boxes: [N, M, 4]; scores: [N, M] of 0 or more.
        groups: [N, M] int64, boxes of different groups never lower each other.
        valid: [N, M] bool, other slots are never taken and lower nothing.
        gaussian: scores fall by exp(-IoU^2 / sigma) (Eq. 3); false = by 1 - IoU where IoU exceeds max_overlap (Eq. 2).
        min_score: boxes whose score has not stayed above this are not taken; 0 or more.
        fixed_size: take D boxes of each image whatever the data.

    Returns:
        Of the boxes taken, best first: slot [N, D] int64 and score [N, D], 0 where an image has no more. D is
        min(max_kept, M); on a CPU only as many as the fullest image needs.
    """
    left = torch.where(valid, scores, -1.0)
    slots, taken = [], []
    for _ in range(min(max_kept, scores.shape[1])):
        best, slot = left.max(dim=1, keepdim=True)
        if not fixed_size and not bool((best > min_score).any()):
            break
        slots.append(slot)
        taken.append(best)
        overlap = pairwise_iou(boxes.gather(1, slot[..., None].expand(-1, 1, 4)), boxes)[:, 0]
        if gaussian:
            decay = torch.exp(-overlap.square() / sigma)
        else:
            decay = torch.where(overlap > max_overlap, 1.0 - overlap, 1.0)
        # Where an image has no box left, what is lowered here was not to be taken anyway.
        left = torch.where(groups == groups.gather(1, slot), left * decay, left).scatter(1, slot, -1.0)
    if not slots:
        return groups.new_zeros(len(scores), 0), scores.new_zeros(len(scores), 0)
    kept = torch.cat(taken, dim=1)
    return torch.cat(slots, dim=1), torch.where(kept > min_score, kept, 0.0)
