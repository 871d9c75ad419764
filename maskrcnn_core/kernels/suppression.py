"""Greedy non-maximum suppression of many groups of boxes in one launch that nobody waits for.

torchvision's operator takes one group a call, asks the device how many boxes are left, and goes through the boxes one
by one in a single block. Here every group of every image is a program of its own, which goes through its boxes a block
at a time: first the boxes that were kept before strike out those of the block, then the block settles among itself.

The second step repeats "a box stays if no box that stays comes before it and overlaps it" until nothing changes. After
k repetitions the first k boxes are settled, so the result is that of the greedy loop; it takes as many repetitions as
the longest chain of boxes that strike each other out, two or three as a rule.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 64


@triton.jit
def _overlaps(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, max_overlap):
    """[A], [B] -> [A, B]: IoU above the limit, in the order of operations of torchvision's operator."""
    width = tl.maximum(tl.minimum(ax2[:, None], bx2[None, :]) - tl.maximum(ax1[:, None], bx1[None, :]), 0.0)
    height = tl.maximum(tl.minimum(ay2[:, None], by2[None, :]) - tl.maximum(ay1[:, None], by1[None, :]), 0.0)
    shared = width * height
    areas = ((ax2 - ax1) * (ay2 - ay1))[:, None] + ((bx2 - bx1) * (by2 - by1))[None, :]
    return tl.div_rn(shared, areas - shared) > max_overlap


@triton.jit(do_not_specialize=["num_boxes", "max_kept"])
def _suppress_group(
    boxes, labels, valid, keep, num_boxes, max_kept, max_overlap, LABELLED: tl.constexpr, BLOCK: tl.constexpr
):
    first = tl.program_id(0).to(tl.int64) * num_boxes
    boxes += first * 4
    labels += first
    valid += first
    keep += first
    lane = tl.arange(0, BLOCK)
    kept = 0
    start = 0
    while (start < num_boxes) & (kept < max_kept):
        place = start + lane
        inside = place < num_boxes
        x1 = tl.load(boxes + place * 4, mask=inside, other=0.0)
        y1 = tl.load(boxes + place * 4 + 1, mask=inside, other=0.0)
        x2 = tl.load(boxes + place * 4 + 2, mask=inside, other=0.0)
        y2 = tl.load(boxes + place * 4 + 3, mask=inside, other=0.0)
        label = tl.load(labels + place, mask=inside, other=-1) if LABELLED else place
        real = tl.load(valid + place, mask=inside, other=0) != 0
        if tl.max(real.to(tl.int32), axis=0) != 0:
            struck = tl.zeros([BLOCK], dtype=tl.int32)
            for before in range(0, start, BLOCK):
                other = before + lane
                other_kept = tl.load(keep + other) != 0
                other_x1 = tl.load(boxes + other * 4)
                other_y1 = tl.load(boxes + other * 4 + 1)
                other_x2 = tl.load(boxes + other * 4 + 2)
                other_y2 = tl.load(boxes + other * 4 + 3)
                over = _overlaps(other_x1, other_y1, other_x2, other_y2, x1, y1, x2, y2, max_overlap)
                over = over & other_kept[:, None]
                if LABELLED:
                    over = over & (tl.load(labels + other)[:, None] == label[None, :])
                struck = tl.maximum(struck, tl.max(over.to(tl.int32), axis=0))
            candidate = real & (struck == 0)
            among = _overlaps(x1, y1, x2, y2, x1, y1, x2, y2, max_overlap) & (lane[:, None] < lane[None, :])
            if LABELLED:
                among = among & (label[:, None] == label[None, :])
            stays = candidate
            changes = 1
            while changes != 0:
                hit = tl.max((among & stays[:, None]).to(tl.int32), axis=0)
                now = candidate & (hit == 0)
                changes = tl.sum((now != stays).to(tl.int32), axis=0)
                stays = now
            tl.store(keep + place, stays.to(tl.int8), mask=inside)
            kept += tl.sum(stays.to(tl.int32), axis=0)
            tl.debug_barrier()  # the next block reads what this one keeps
        start += BLOCK


def suppress_ranked(
    boxes: Tensor, labels: Tensor | None, valid: Tensor, max_overlap: float, max_kept: int | None = None
) -> Tensor:
    """Survivors of non-maximum suppression within each group and label.

    Args:
        boxes: [G, M, 4] float32, each group best first.
        labels: [G, M] int64, boxes of different labels never suppress each other; None = all alike.
        valid: [G, M] bool, other slots are neither kept nor suppress.
        max_overlap: IoU above which the weaker of two boxes goes.
        max_kept: survivors of a group that are wanted: the best so many are found for certain, what comes after them
            may be left out. None = all.

    Returns:
        [G, M] bool.
    """
    groups, slots = valid.shape
    keep = torch.zeros(groups, slots, dtype=torch.int8, device=boxes.device)
    if keep.numel() == 0:
        return keep.bool()
    boxes, valid = boxes.contiguous(), valid.contiguous().view(torch.int8)
    _suppress_group[(groups,)](
        boxes,
        valid if labels is None else labels.contiguous(),
        valid,
        keep,
        slots,
        slots if max_kept is None else max_kept,
        max_overlap,
        LABELLED=labels is not None,
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return keep.bool()
