"""Soft masks on a device -> where the runs of each mask start and end: only these leave the device.

The numbers of `masks.paste_mask`, for many masks at once. A window of pixels is a set of columns; the columns of many
masks lie side by side in one table, as long as the tallest window, so that narrow and wide masks waste nothing. Masks
of similar height share a table, no table holds more than a fixed number of pixels, and a window that is larger is cut
between columns. A table takes the same number of operations whatever it holds.

The interpolation is written as products and sums of two (`bicubic`: four) neighbours rather than as a matrix product,
whose rounding is another on every device and, with TF32, far too coarse for a threshold. So devices agree to the bit;
numpy's matrix product in `masks` may differ in the last bit of a value, which matters only to a pixel whose value is
within 1e-6 of the threshold.

Letters: P pieces (windows or parts of them) in a table, S the masks' side, C columns and H rows of the table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_core.masks import PasteRule, PixelSpans, counts_between, encode_counts, pixel_spans

# Pixels of a table: some 14 bytes each, so 230 MB at a time.
PIXELS_AT_ONCE = 1 << 24

# Windows up to this many rows share a table whatever their heights: the waste is small, a further table is not.
_LOW = 64

# Columns of a table of pieces.
_MASK, _IMAGE_HEIGHT, _LEFT, _COLUMNS, _TOP, _ROWS, _LEFT_EDGE, _ACROSS, _TOP_EDGE, _DOWN = range(10)


@dataclass(frozen=True)
class MaskRuns:
    """The runs of some masks, on the host.

    Attributes:
        positions: [R] int64, column-major positions in the image where runs start and end, in turn; none goes on over
            the end of its column. One mask after the other, in no particular order.
        starts, stops: [D] int64, which part of `positions` belongs to each mask.
    """

    positions: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    def of(self, mask: int) -> NDArray[np.int64]:
        """The positions of one mask."""
        return self.positions[self.starts[mask] : self.stops[mask]]


def encode_on_device(
    masks: Tensor,
    places: NDArray[np.int64],
    boxes: NDArray[np.float32],
    sizes: NDArray[np.int64],
    *,
    rule: PasteRule = "exact",
    threshold: float = 0.5,
    pixels_at_once: int = PIXELS_AT_ONCE,
) -> list[str]:
    """COCO compressed run lengths of masks that lie on a device; arguments as `mask_runs`."""
    runs = mask_runs(masks, places, boxes, sizes, rule=rule, threshold=threshold, pixels_at_once=pixels_at_once)
    return [
        encode_counts(counts_between(runs.of(place), height, width), height, width)
        for place, (height, width) in enumerate(sizes.tolist())
    ]


@torch.no_grad()
def mask_runs(
    masks: Tensor,
    places: NDArray[np.int64],
    boxes: NDArray[np.float32],
    sizes: NDArray[np.int64],
    *,
    rule: PasteRule = "exact",
    threshold: float = 0.5,
    pixels_at_once: int = PIXELS_AT_ONCE,
) -> MaskRuns:
    """Where the runs of masks start and end. Waits for the device once a table, and copies from it once.

    Args:
        masks: [M, S, S] probabilities, on any device.
        places: [D], which of the M masks are wanted.
        boxes: [D, 4] float32, what each covers, in pixels of its image; on the host.
        sizes: [D, 2] (height, width) of the image of each.
        rule, threshold: as in `paste_mask`.
        pixels_at_once: of a table; one column is always taken.

    Raises:
        ValueError: a box is not finite.
    """
    side = masks.shape[-1]
    spans = pixel_spans(boxes, sizes, side, rule)
    pieces, owners, tables = _pieces(places, spans, sizes, side, pixels_at_once)
    on_device = _to_device(torch.from_numpy(pieces), masks.device)
    counts, positions = [], []
    for table in tables:
        part = slice(table.start, table.stop)
        columns, rows = int(pieces[part, _COLUMNS].sum()), int(pieces[part, _ROWS].max())
        changes, first_pixels, column_owners = _table_changes(
            masks, on_device[part], columns, rows, rule=rule, threshold=threshold
        )
        found = changes.view(-1).nonzero()[:, 0]  # how many there are is asked here
        column = torch.div(found, rows + 1, rounding_mode="floor")
        positions.append(first_pixels[column] + (found - column * (rows + 1)))
        in_column = changes.sum(dim=1)
        counts.append(in_column.new_zeros(len(pieces[part])).index_add_(0, column_owners, in_column))
    copied = torch.cat([*counts, *positions]).cpu().numpy() if tables else np.zeros(0, dtype=np.int64)
    of_piece, flat = copied[: len(pieces)], copied[len(pieces) :]
    lengths = np.zeros(len(places), dtype=np.int64)
    np.add.at(lengths, owners, of_piece)
    # The pieces of a mask follow each other, so its runs do.
    order, first = np.unique(owners, return_index=True)
    starts = np.zeros(len(places), dtype=np.int64)
    starts[order] = (np.cumsum(of_piece) - of_piece)[first]
    return MaskRuns(flat, starts, starts + lengths)


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _pieces(
    places: NDArray[np.int64], spans: PixelSpans, sizes: NDArray[np.int64], side: int, pixels_at_once: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], Sequence[range]]:
    """How the windows are cut and put into tables.

    Returns:
        pieces [P, 10] float64, which holds these integers exactly; the window [P] of each; and for each table the range
        of its pieces.
    """
    wanted = np.flatnonzero((spans.count > 0).all(axis=1))
    wanted = wanted[np.argsort(-spans.count[wanted, 1], kind="stable")]  # tallest first
    cuts = list(_cuts(spans.count[wanted].tolist(), side, pixels_at_once))
    owners = wanted[[cut.window for cut in cuts]] if cuts else wanted
    starts, counts = (
        np.array([getattr(cut, name) for cut in cuts], dtype=np.int64) for name in ("first_column", "columns")
    )
    left, top = spans.first[owners].T
    columns = [places[owners], sizes[owners, 0], left + starts, counts, top, spans.count[owners, 1]]
    edges = [values[owners, axis] for axis in (0, 1) for values in (spans.origin, spans.scale)]
    pieces = np.stack([*columns, *edges], axis=1).astype(np.float64)
    fresh = [place for place, cut in enumerate(cuts) if cut.opens_table]
    return pieces, owners, [range(*ends) for ends in pairwise([*fresh, len(cuts)])]


@dataclass(frozen=True)
class _Cut:
    """Some columns of a window: the first one, how many, and whether a table begins with them."""

    window: int
    first_column: int
    columns: int
    opens_table: bool


def _cuts(windows: Sequence[Sequence[int]], side: int, pixels_at_once: int) -> Iterator[_Cut]:
    """Windows (columns, rows), tallest first, cut to what the tables hold."""
    tallest = free = 0
    for window, (columns, rows) in enumerate(windows):
        done = 0
        while done < columns:
            # A piece also needs its mask stretched over the rows: `side` columns more.
            fits = free // max(tallest, 1) - side
            similar = 2 * rows >= tallest or tallest <= _LOW
            opens = not similar or fits < min(columns - done, max(columns // 4, 1))
            if opens:
                tallest, free = rows, pixels_at_once
                fits = max(free // rows - side, 1)
            taken = min(fits, columns - done)
            yield _Cut(window, done, taken, opens)
            free -= (taken + side) * tallest
            done += taken


def _table_changes(
    masks: Tensor, pieces: Tensor, num_columns: int, num_rows: int, *, rule: PasteRule, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels of a table that differ from the one above.

    Args:
        masks: [M, S, S]; pieces: [P, 10] on the same device.

    Returns:
        [C, H + 1] bool, above every column and below it lies background; [C] int64 the position of each column's first
        pixel in its image; [C] int64 the piece of each.
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
    first_columns = pieces[:, _COLUMNS].cumsum(dim=0) - pieces[:, _COLUMNS] - pieces[:, _LEFT]
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
    return changes, (x * table[:, _IMAGE_HEIGHT] + table[:, _TOP]).long(), owners


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
