"""Where the runs of many soft masks start and end, in two launches: one counts them, the other writes them down.

A program takes some columns of one mask's window and goes down them a block of rows at a time. What it computes for a
pixel is what `inference/device_masks.py` computes, in the same order and without fused multiply-adds, so that the bits
are the same; nothing of the size of a window is ever stored.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS_AT_ONCE, _ROWS_AT_ONCE = 16, 64
FIELDS = 11
"""Numbers of a window: mask, height of its image, left, columns, top, rows, origin and scale across, origin and scale
down (`PixelSpans`), and how many columns all windows before it have."""

TAPS = {"exact": 2, "torchvision": 2, "bicubic": 4}


@triton.jit
def _tap(positions, number: tl.constexpr, side, TAPS: tl.constexpr):
    """Cell and weight of one of the neighbours that a pixel is interpolated between."""
    cell = tl.floor(positions) + (number - (TAPS // 2 - 1))
    distance = tl.abs(positions - cell)
    if TAPS == 4:
        near = (1.25 * distance - 2.25) * (distance * distance) + 1.0
        far = -0.75 * (((distance - 5.0) * distance + 8.0) * distance - 4.0)
        weight = tl.where(distance <= 1.0, near, tl.where(distance < 2.0, far, 0.0))
    else:
        weight = tl.maximum(1.0 - distance, 0.0)
    weight = tl.where((cell >= 0) & (cell < side), weight, 0.0)
    return tl.minimum(tl.maximum(cell, 0.0), side - 1.0).to(tl.int32), weight.to(tl.float32)


@triton.jit
def _positions(pixel, origin, scale, side, PADDED: tl.constexpr):
    """Where pixels lie in units of a mask's cells."""
    positions = (pixel.to(tl.float64) + 0.5 - origin) * scale - 0.5
    if PADDED:
        positions = tl.minimum(tl.maximum(positions, 0.0), side + 1.0) - 1.0
    return positions


@triton.jit
def _inside(mask, across, top, origin, scale, row, rows, side, threshold, TAPS: tl.constexpr, PADDED: tl.constexpr):
    """[R, C]: which pixels of some rows belong to the mask; none outside of its window."""
    down = _positions(top + row, origin, scale, side, PADDED)
    values = tl.zeros([row.shape[0], across.shape[0]], dtype=tl.float32)
    for x_tap in tl.static_range(TAPS):
        column, column_weight = _tap(across, x_tap, side, TAPS)
        stretched = tl.zeros([row.shape[0], across.shape[0]], dtype=tl.float32)
        for y_tap in tl.static_range(TAPS):
            cell, weight = _tap(down, y_tap, side, TAPS)
            stretched += tl.load(mask + cell[:, None] * side + column[None, :]).to(tl.float32) * weight[:, None]
        values += stretched * column_weight[None, :]
    return (values >= threshold) & ((row >= 0) & (row < rows))[:, None]


@triton.jit
def _window_columns(
    masks,
    windows,
    counts,
    ends,
    positions,
    side,
    threshold,
    TAPS: tl.constexpr,
    PADDED: tl.constexpr,
    WRITE: tl.constexpr,
    FIELDS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    window = windows + tl.program_id(0) * FIELDS
    columns = tl.load(window + 3).to(tl.int32)
    first = tl.program_id(1) * COLUMNS
    if first < columns:
        mask = masks + tl.load(window).to(tl.int64) * side * side
        image_height = tl.load(window + 1).to(tl.int64)
        left, top = tl.load(window + 2).to(tl.int32), tl.load(window + 4).to(tl.int32)
        rows = tl.load(window + 5).to(tl.int32)
        origin, scale = tl.load(window + 8), tl.load(window + 9)
        column = first + tl.arange(0, COLUMNS)
        real = column < columns
        across = _positions(left + column, tl.load(window + 6), tl.load(window + 7), side, PADDED)
        column_index = tl.load(window + 10).to(tl.int64) + column
        total = tl.zeros([COLUMNS], dtype=tl.int64)
        if WRITE:
            total += tl.load(ends + column_index, mask=real, other=0) - tl.load(
                counts + column_index, mask=real, other=0
            )
        for start in range(0, rows + 1, ROWS):
            row = start + tl.arange(0, ROWS)
            now = _inside(mask, across, top, origin, scale, row, rows, side, threshold, TAPS, PADDED)
            before = _inside(mask, across, top, origin, scale, row - 1, rows, side, threshold, TAPS, PADDED)
            changed = (now != before) & (row <= rows)[:, None] & real[None, :]
            changes = changed.to(tl.int32)
            if WRITE:
                position = (left + column).to(tl.int64)[None, :] * image_height + (top + row)[:, None]
                slot = total[None, :] + tl.cumsum(changes, axis=0) - 1
                tl.store(positions + slot, position, mask=changed)
            total += tl.sum(changes, axis=0)
        if not WRITE:
            tl.store(counts + column_index, total, mask=real)


def count_and_write_runs(
    masks: Tensor, windows: Tensor, columns: int, widest: int, ends: Tensor, *, rule: str, threshold: float
) -> tuple[Tensor, Tensor]:
    """The runs of every window. Waits for the device once.

    Args:
        masks: [M, S, S] float32, on a device.
        windows: [D, FIELDS] float64, which holds the integers among them exactly.
        columns: of all windows together; widest: of the widest, both above 0.
        ends: [D] int64, number of columns up to the end of each window.
        rule, threshold: as in `masks.paste_mask`.

    Returns:
        positions [R] int64, column-major positions in its image where runs of a mask start and end, in turn, one mask
        after the other; and on the host [D] int64, how many there are up to the end of each.
    """
    masks = masks.contiguous()
    grid = (len(windows), triton.cdiv(widest, _COLUMNS_AT_ONCE))
    counts = torch.empty(columns, dtype=torch.int64, device=masks.device)
    fixed = {
        "TAPS": TAPS[rule],
        "PADDED": rule == "torchvision",
        "FIELDS": FIELDS,
        "COLUMNS": _COLUMNS_AT_ONCE,
        "ROWS": _ROWS_AT_ONCE,
        "num_warps": 4,
        "enable_fp_fusion": False,  # torch rounds after every operation
    }
    side = masks.shape[-1]
    _window_columns[grid](masks, windows, counts, counts, counts, side, threshold, WRITE=False, **fixed)
    up_to = counts.cumsum(dim=0)
    # A window without columns ends where the one before does.
    lengths = torch.where(ends > 0, up_to[(ends - 1).clamp(min=0)], 0).cpu()
    positions = torch.empty(int(lengths[-1]), dtype=torch.int64, device=masks.device)
    if len(positions) > 0:
        _window_columns[grid](masks, windows, counts, up_to, positions, side, threshold, WRITE=True, **fixed)
    return positions, lengths
