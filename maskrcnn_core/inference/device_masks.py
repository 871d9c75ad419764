"""Soft masks on a device -> where the runs of each mask start and end -> run lengths: only these leave the device.

The numbers of `masks.paste_mask`, for many masks at once. A window of pixels is a set of columns; the columns of many
masks lie side by side in one table, as long as the tallest window, so that narrow and wide masks waste nothing. Masks
of similar height share a table, no table holds more than a fixed number of pixels, and a window that is larger is cut
between columns. A table takes the same number of operations whatever it holds.

The interpolation is written as products and sums of two (`bicubic`: four) neighbours rather than as a matrix product,
whose rounding is another on every device and, with TF32, far too coarse for a threshold. So devices agree to the bit;
numpy's matrix product in `masks` may differ in the last bit of a value, which matters only to a pixel whose value is
within 1e-6 of the threshold. On a GPU with Triton `kernels/mask_runs.py` does the same without tables.

Letters: P pieces (windows or parts of them) in a table, S the masks' side, C columns and H rows of the table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_core.kernels.gpu.availability import use_kernels
from maskrcnn_core.masks import PasteRule, PixelSpans, pixel_spans
from maskrcnn_core.run_lengths import encode_runs, to_device

# Pixels of a table: some 14 bytes each, so 230 MB at a time.
PIXELS_AT_ONCE = 1 << 24

# Windows up to this many rows share a table whatever their heights: the waste is small, a further table is not.
_LOW = 64

# Columns of a table of pieces.
_MASK, _IMAGE_HEIGHT, _LEFT, _COLUMNS, _TOP, _ROWS, _LEFT_EDGE, _ACROSS, _TOP_EDGE, _DOWN = range(10)


@dataclass(frozen=True)
class MaskRuns:
    """The runs of D masks.

    Attributes:
        positions: [R] int64 on the masks' device, column-major positions in the image where runs start and end, in
            turn; none goes on over the end of its column. One mask after the other.
        masks: [D] int64 on the host, in which order.
        lengths: [D] int64 on the host, how many positions each of them has, in that order.
    """

    positions: Tensor
    masks: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def of(self, mask: int) -> Tensor:
        """The positions of one mask."""
        index = int(np.flatnonzero(self.masks == mask)[0])
        start = int(self.lengths[:index].sum())
        return self.positions[start : start + int(self.lengths[index])]


def encode_on_device(
    masks: Tensor,
    indices: NDArray[np.int64],
    boxes: NDArray[np.float32],
    sizes: NDArray[np.int64],
    *,
    rule: PasteRule = "exact",
    threshold: float = 0.5,
    pixels_at_once: int = PIXELS_AT_ONCE,
) -> list[str]:
    """COCO compressed run lengths of masks that lie on a device; arguments as `mask_runs`."""
    runs = mask_runs(masks, indices, boxes, sizes, rule=rule, threshold=threshold, pixels_at_once=pixels_at_once)
    encoded = encode_runs(runs.positions, runs.lengths, sizes[runs.masks].prod(axis=1))
    in_order = [""] * len(encoded)
    for mask, counts in zip(runs.masks.tolist(), encoded, strict=True):
        in_order[mask] = counts
    return in_order


@torch.no_grad()
def mask_runs(
    masks: Tensor,
    indices: NDArray[np.int64],
    boxes: NDArray[np.float32],
    sizes: NDArray[np.int64],
    *,
    rule: PasteRule = "exact",
    threshold: float = 0.5,
    pixels_at_once: int = PIXELS_AT_ONCE,
) -> MaskRuns:
    """Where the runs of masks start and end. Waits for the device once, or without Triton once a table, and copies a
    number a mask, or piece of one, from it.

    Args:
        masks: [M, S, S] probabilities, on any device.
        indices: [D], which of the M masks are wanted.
        boxes: [D, 4] float32, what each covers, in pixels of its image; on the host.
        sizes: [D, 2] (height, width) of the image of each.
        rule, threshold: as in `paste_mask`.
        pixels_at_once: of a table; one column is always taken.

    Raises:
        ValueError: a box is not finite.
    """
    side = masks.shape[-1]
    spans = pixel_spans(boxes, sizes, side, rule)
    if use_kernels(masks, "masks"):
        return _runs_by_kernel(masks, indices, spans, sizes, rule=rule, threshold=threshold)
    pieces, owners, tables = _pieces(indices, spans, sizes, side, pixels_at_once)
    if not tables:
        nothing = torch.zeros(0, dtype=torch.int64, device=masks.device)
        return MaskRuns(nothing, np.arange(len(indices)), np.zeros(len(indices), dtype=np.int64))
    on_device = to_device(torch.from_numpy(pieces), masks.device)
    counts, positions = [], []
    for table in tables:
        part = slice(table.start, table.stop)
        columns, rows = int(pieces[part, _COLUMNS].sum()), int(pieces[part, _ROWS].max())
        changes, first_pixels, column_ends = _table_changes(
            masks, on_device[part], columns, rows, rule=rule, threshold=threshold
        )
        changed = changes.view(-1).nonzero()[:, 0]  # how many there are is asked here
        column = torch.div(changed, rows + 1, rounding_mode="floor")
        positions.append(first_pixels[column] + (changed - column * (rows + 1)))
        counts.append(torch.searchsorted(changed, column_ends * (rows + 1)).diff(prepend=changed.new_zeros(1)))
    # The pieces of a mask follow each other, so its runs do; masks that are not drawn come last.
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    undrawn = np.setdiff1d(np.arange(len(indices)), owners)
    lengths = np.add.reduceat(torch.cat(counts).cpu().numpy(), first)
    return MaskRuns(
        torch.cat(positions),
        np.concatenate((owners[first], undrawn)),
        np.concatenate((lengths, np.zeros_like(undrawn))),
    )


def _runs_by_kernel(
    masks: Tensor,
    indices: NDArray[np.int64],
    spans: PixelSpans,
    sizes: NDArray[np.int64],
    *,
    rule: PasteRule,
    threshold: float,
) -> MaskRuns:
    """`mask_runs` in a dozen launches instead of a hundred a table (`kernels/mask_runs.py`)."""
    from maskrcnn_core.kernels.gpu.mask_runs import count_and_write_runs

    order = np.arange(len(indices))
    columns = np.where(spans.count[:, 1] > 0, spans.count[:, 0], 0)
    ends = np.cumsum(columns)
    if len(indices) == 0 or ends[-1] == 0:
        return MaskRuns(torch.zeros(0, dtype=torch.int64, device=masks.device), order, np.zeros_like(order))
    numbers = [indices, sizes[:, 0], spans.first[:, 0], columns, spans.first[:, 1], spans.count[:, 1]]
    edges = [values[:, axis] for axis in (0, 1) for values in (spans.origin, spans.scale)]
    windows = np.stack([*numbers, *edges, ends - columns, ends], axis=1).astype(np.float64)
    sent = to_device(torch.from_numpy(windows), masks.device)
    positions, up_to = count_and_write_runs(
        masks,
        sent[:, :-1].contiguous(),
        int(ends[-1]),
        int(columns.max()),
        sent[:, -1].long(),
        rule=rule,
        threshold=threshold,
    )
    return MaskRuns(positions, order, np.diff(up_to.numpy(), prepend=0))


def _pieces(
    indices: NDArray[np.int64], spans: PixelSpans, sizes: NDArray[np.int64], side: int, pixels_at_once: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], Sequence[range]]:
    """How the windows are cut and put into tables.

    Returns:
        pieces [P, 10] float64, which holds these integers exactly; the window [P] of each; and for each table the range
        of its pieces.
    """
    wanted = np.flatnonzero((spans.count > 0).all(axis=1))
    wanted = wanted[np.argsort(-spans.count[wanted, 1], kind="stable")]  # tallest first
    widths, heights = spans.count[wanted].T
    openings = np.array(list(_openings(widths, heights, side, pixels_at_once)), dtype=np.int64).reshape(-1, 2)
    # Every window is a piece, and so is what a table begins with in the middle of one.
    cut = openings[:, 1] > 0
    windows, starts = np.arange(len(wanted)), np.zeros(len(wanted), dtype=np.int64)
    windows, starts = (
        np.insert(values, openings[cut, 0] + 1, opened)
        for values, opened in zip((windows, starts), openings[cut].T, strict=True)
    )
    tables = [range(*ends) for ends in pairwise([*(openings[:, 0] + np.cumsum(cut)).tolist(), len(windows)])]
    ends = widths[windows]
    ends[:-1] = np.where(windows[:-1] == windows[1:], starts[1:], ends[:-1])
    owners = wanted[windows]
    left, top = spans.first[owners].T
    columns = [indices[owners], sizes[owners, 0], left + starts, ends - starts, top, spans.count[owners, 1]]
    edges = [values[owners, axis] for axis in (0, 1) for values in (spans.origin, spans.scale)]
    return np.stack([*columns, *edges], axis=1).astype(np.float64), owners, tables


def _openings(
    widths: NDArray[np.int64], heights: NDArray[np.int64], side: int, pixels_at_once: int
) -> Iterator[tuple[int, int]]:
    """Windows, tallest first, put into tables: which window each table begins with, and at which of its columns."""
    # A piece also needs its mask stretched over the rows: `side` columns more.
    needed = np.concatenate(([0], np.cumsum(widths + side)))
    window = column = 0
    while window < len(widths):
        yield window, column
        tallest, width = int(heights[window]), int(widths[window])
        holds = pixels_at_once // tallest
        if column + holds < width + side:
            column += max(holds - side, 1)
            if column >= width:
                window, column = window + 1, 0
            continue
        similar = len(widths) if tallest <= _LOW else int(np.searchsorted(-heights, -tallest / 2, side="right"))
        end = int(needed[window]) + column + holds
        window = min(int(np.searchsorted(needed, end, side="right")) - 1, similar)
        column = 0
        if window < similar:
            # The next is cut where much of it fits.
            fits = end - int(needed[window]) - side
            column = fits if fits >= max(int(widths[window]) // 4, 1) else 0


def _table_changes(
    masks: Tensor, pieces: Tensor, num_columns: int, num_rows: int, *, rule: PasteRule, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels of a table that differ from the one above.

    Args:
        masks: [M, S, S]; pieces: [P, 10] on the same device.

    Returns:
        [C, H + 1] bool, above every column and below it lies background; [C] int64 the position of each column's first
        pixel in its image; [P] int64 the column after each piece's last.
    """
    side, device = masks.shape[-1], masks.device
    rows = torch.arange(num_rows, dtype=torch.float64, device=device)
    # Rows below a piece's own get the weight NaN: so is the value, and no comparison with it holds.
    down = _taps(rows + pieces[:, _TOP, None], pieces[:, _TOP_EDGE, None], pieces[:, _DOWN, None], side, rule)
    below = rows >= pieces[:, _ROWS, None]
    upright = masks.index_select(0, pieces[:, _MASK].long()).float().transpose(1, 2)  # [P, x, y]
    stretched = _sum_of(
        upright.gather(2, cells[:, None].expand(-1, side, -1)).mul_(weights.masked_fill(below, torch.nan)[:, None])
        for cells, weights in down
    )
    owners = torch.arange(len(pieces), device=device).repeat_interleave(
        pieces[:, _COLUMNS].long(), output_size=num_columns
    )
    column_ends = pieces[:, _COLUMNS].cumsum(dim=0)
    first_columns = column_ends - pieces[:, _COLUMNS] - pieces[:, _LEFT]
    table = pieces.index_select(0, owners)
    x = torch.arange(num_columns, dtype=torch.float64, device=device) - first_columns.index_select(0, owners)
    flat = stretched.flatten(0, 1)  # [P * S, H]
    values = _sum_of(
        flat.index_select(0, owners * side + cells).mul_(weights[:, None])
        for cells, weights in _taps(x, table[:, _LEFT_EDGE], table[:, _ACROSS], side, rule)
    )
    inside = values >= threshold
    del values
    changes = inside.new_empty(num_columns, num_rows + 1)
    changes[:, 0] = inside[:, 0]
    torch.ne(inside[:, 1:], inside[:, :-1], out=changes[:, 1:-1])
    changes[:, -1] = inside[:, -1]
    return changes, (x * table[:, _IMAGE_HEIGHT] + table[:, _TOP]).long(), column_ends.long()


def _sum_of(terms: Iterator[Tensor]) -> Tensor:
    """Sum in the order given, in the memory of the first."""
    total = next(terms)
    for term in terms:
        total += term
    return total


def _taps(pixels: Tensor, origin: Tensor, scale: Tensor, side: int, rule: PasteRule) -> list[tuple[Tensor, Tensor]]:
    """The cells of a mask that a pixel is interpolated between, as `masks` weighs them.

    Args:
        pixels: [...] float64, number of the pixel in the image.
        origin, scale: of `PixelSpans`.

    Returns:
        For each neighbour the cell [...] int64 and its weight [...] float32, 0 where there is no such cell.
    """
    # Every operation rounds by itself and is correctly rounded, in numpy's order: the same bits.
    positions = (pixels + 0.5 - origin) * scale - 0.5
    if rule == "torchvision":
        positions = positions.clamp(0, side + 1) - 1.0
    lower = positions.floor()
    taps = []
    for shift in (-1, 0, 1, 2) if rule == "bicubic" else (0, 1):
        cell = lower + shift
        distance = (positions - cell).abs()
        weight = _cubic(distance) if rule == "bicubic" else (1.0 - distance).clamp(min=0.0)
        weight = torch.where((cell >= 0) & (cell < side), weight, 0.0)
        taps.append((cell.clamp(0, side - 1).long(), weight.float()))
    return taps


def _cubic(distance: Tensor) -> Tensor:
    """Weights of cubic convolution, as in `masks`."""
    near = (1.25 * distance - 2.25) * (distance * distance) + 1.0
    far = -0.75 * (((distance - 5.0) * distance + 8.0) * distance - 4.0)
    return torch.where(distance <= 1.0, near, torch.where(distance < 2.0, far, 0.0))
