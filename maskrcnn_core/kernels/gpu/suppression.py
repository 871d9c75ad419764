"""Greedy non-maximum suppression of many groups of boxes in one launch that nobody waits for.

torchvision's operator takes one group a call, asks the device how many boxes are left, and goes through the boxes one
by one in a single block. Here every group of every image is a program of its own, which goes through its boxes a block
of 64 at a time: first the boxes that were kept before strike out those of the block, then the block settles among
itself.

The second step repeats "a box stays if no box that stays comes before it and overlaps it" until nothing changes. After
k repetitions the first k boxes are settled, so the result is that of the greedy loop; it takes as many repetitions as
the longest chain of boxes that strike each other out, two or three as a rule.

Who overlaps whom is worked out in two ways. For the thousands of proposals of a level, most of which have to be looked
at, the whole device does it beforehand, a bit for each pair. For detections, of which the best hundred are enough, a
program does it as it goes and ends when it has them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 64
_MOST_IN_WORDS = 8192  # boxes of a group: 8 MB of words


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
        index = start + lane
        inside = index < num_boxes
        x1 = tl.load(boxes + index * 4, mask=inside, other=0.0)
        y1 = tl.load(boxes + index * 4 + 1, mask=inside, other=0.0)
        x2 = tl.load(boxes + index * 4 + 2, mask=inside, other=0.0)
        y2 = tl.load(boxes + index * 4 + 3, mask=inside, other=0.0)
        label = tl.load(labels + index, mask=inside, other=-1) if LABELLED else index
        real = tl.load(valid + index, mask=inside, other=0) != 0
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
            tl.store(keep + index, stays.to(tl.int8), mask=inside)
            kept += tl.sum(stays.to(tl.int32), axis=0)
            tl.debug_barrier()  # the next block reads what this one keeps
        start += BLOCK


@triton.jit
def _either(first, second):
    return first | second


@triton.jit
def _overlap_words(boxes, words, num_boxes, num_blocks, max_overlap, BLOCK: tl.constexpr):
    """Bit j of word [row, block]: the row's box overlaps box j of a block that does not lie before its own."""
    row_block, column_block = tl.program_id(1), tl.program_id(2)
    if column_block >= row_block:
        group = tl.program_id(0).to(tl.int64)
        boxes += group * num_boxes * 4
        lane = tl.arange(0, BLOCK)
        row, column = row_block * BLOCK + lane, column_block * BLOCK + lane
        row_inside, column_inside = row < num_boxes, column < num_boxes
        over = _overlaps(
            tl.load(boxes + row * 4, mask=row_inside, other=0.0),
            tl.load(boxes + row * 4 + 1, mask=row_inside, other=0.0),
            tl.load(boxes + row * 4 + 2, mask=row_inside, other=0.0),
            tl.load(boxes + row * 4 + 3, mask=row_inside, other=0.0),
            tl.load(boxes + column * 4, mask=column_inside, other=0.0),
            tl.load(boxes + column * 4 + 1, mask=column_inside, other=0.0),
            tl.load(boxes + column * 4 + 2, mask=column_inside, other=0.0),
            tl.load(boxes + column * 4 + 3, mask=column_inside, other=0.0),
            max_overlap,
        )
        over = over & (row[:, None] < column[None, :])
        word = tl.sum(over.to(tl.int64) << lane[None, :].to(tl.int64), axis=1)
        tl.store(words + (group * num_blocks * BLOCK + row) * num_blocks + column_block, word)


@triton.jit
def _settle_group(words, valid, keep, num_boxes, num_blocks, max_kept, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    """From the words of a group which of its boxes stay."""
    group = tl.program_id(0).to(tl.int64)
    words += group * num_blocks * BLOCK * num_blocks
    valid += group * num_boxes
    keep += group * num_boxes
    lane = tl.arange(0, BLOCK)
    bit = lane.to(tl.int64)
    block_of_word = tl.arange(0, WORDS)
    struck = tl.zeros([WORDS], dtype=tl.int64)
    kept = 0
    block = 0
    while (block < num_blocks) & (kept < max_kept):
        index = block * BLOCK + lane
        own = tl.sum(tl.where(block_of_word == block, struck, 0), axis=0)
        real = tl.load(valid + index, mask=index < num_boxes, other=0) != 0
        candidate = real & (((own >> bit) & 1) == 0)
        among = tl.load(words + index * num_blocks + block)
        stays = candidate
        changes = 1
        while changes != 0:
            hit = tl.reduce(tl.where(stays, among, 0), 0, _either)
            now = candidate & (((hit >> bit) & 1) == 0)
            changes = tl.sum((now != stays).to(tl.int32), axis=0)
            stays = now
        tl.store(keep + index, stays.to(tl.int8), mask=index < num_boxes)
        kept += tl.sum(stays.to(tl.int32), axis=0)
        # Words of blocks before this one were never written; nobody looks at their boxes again.
        later = (block_of_word > block) & (block_of_word < num_blocks)
        rows = tl.load(
            words + index[:, None] * num_blocks + block_of_word[None, :],
            mask=stays[:, None] & later[None, :],
            other=0,
        )
        struck = struck | tl.reduce(rows, 0, _either)
        block += 1


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
    limit = slots if max_kept is None else max_kept
    blocks = triton.cdiv(slots, _BLOCK)
    if labels is None and slots <= _MOST_IN_WORDS:
        words = torch.empty(groups, blocks * _BLOCK, blocks, dtype=torch.int64, device=boxes.device)
        _overlap_words[(groups, blocks, blocks)](boxes, words, slots, blocks, max_overlap, BLOCK=_BLOCK, num_warps=4)
        _settle_group[(groups,)](
            words, valid, keep, slots, blocks, limit, WORDS=triton.next_power_of_2(blocks), BLOCK=_BLOCK, num_warps=4
        )
    else:
        _suppress_group[(groups,)](
            boxes,
            valid if labels is None else labels.contiguous(),
            valid,
            keep,
            slots,
            limit,
            max_overlap,
            LABELLED=labels is not None,
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return keep.bool()
