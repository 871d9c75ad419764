"""From a soft mask on its box to COCO run lengths of the whole image, without ever making the whole image.

A soft mask [S, S] covers its box. Bilinear and bicubic resampling are separable, so its value on the pixels of the box
is W_y @ mask @ W_x^T with one small weight matrix an axis. The result is thresholded, and only the box's columns are
run-length encoded; everything outside is counted, not stored. Works on the host, on numpy arrays, a block of columns at
a time; `inference/device_masks.py` does the same for many masks on a device.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

PasteRule = Literal["exact", "bicubic", "torchvision"]

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

# Pixels of a window that are computed at once: some 8 MB of temporaries, whatever the size of the box.
_PIXELS_AT_ONCE = 1 << 20

# How many cells outside its box a mask's outermost cells are still felt.
_REACH = {"exact": 0.5, "bicubic": 1.5}


@dataclass(frozen=True)
class PastedMask:
    """A binary mask inside a window of the image; everything outside the window is background.

    Attributes:
        columns: [w, h] bool, column-major: columns[j, i] is the pixel in window row i, column j.
        top, left: the window's first row and column in the image.
    """

    columns: NDArray[np.bool_]
    top: int
    left: int


@dataclass(frozen=True)
class PixelSpans:
    """The pixels that get a contribution from each of D soft masks, along both axes: [..., 0] is x, [..., 1] is y.

    In units of a mask's cells, pixel p has its centre at (p + 0.5 - origin) * scale - 0.5.

    Attributes:
        first, count: [D, 2] int64, first pixel and number of pixels, within the image.
        origin, scale: [D, 2] float64.
    """

    first: NDArray[np.int64]
    count: NDArray[np.int64]
    origin: Float64Array
    scale: Float64Array


def pixel_spans(boxes: Float32Array, sizes: NDArray[np.int64], side: int, rule: PasteRule) -> PixelSpans:
    """Which pixels each mask is drawn on.

    Args:
        boxes: [D, 4] x1, y1, x2, y2 in image pixels; may reach beyond the image.
        sizes: [D, 2] or [1, 2] (height, width) of the image of each.
        side: S.
        rule: as in `paste_mask`.

    Raises:
        ValueError: a box is not finite.
    """
    corners = np.asarray(boxes, dtype=np.float64)
    if not np.isfinite(corners).all():
        raise ValueError(f"boxes to draw masks on: got {corners.tolist()}, expected finite coordinates")
    low, high, limits = corners[:, :2], corners[:, 2:], sizes[:, ::-1]
    if rule == "torchvision":
        # The mask, padded by one cell, is stretched over whole pixels.
        padded = side + 2
        centre, half = (low + high) * 0.5, (high - low) * 0.5 * (padded / side)
        # In float32 and towards zero, as torchvision.
        first, last = ((centre + shift).astype(np.float32).astype(np.int64) for shift in (-half, half))
        scale = padded / np.maximum(last - first + 1, 1).astype(np.float64)
        origin = first.astype(np.float64)
        last = np.maximum(last, first)
    else:
        scale = side / np.maximum(high - low, 1e-6)
        reach, origin = _REACH[rule] / scale, low
        first = np.ceil(low - reach - 0.5).astype(np.int64)
        last = np.floor(high + reach - 0.5).astype(np.int64)
    start = np.maximum(first, 0)
    return PixelSpans(start, np.maximum(np.minimum(last + 1, limits) - start, 0), origin, scale)


def paste_mask(
    mask: Float32Array, box: Float32Array, height: int, width: int, *, rule: PasteRule = "exact", threshold: float = 0.5
) -> PastedMask:
    """Resample a soft mask to image pixels and threshold it.

    Args:
        mask: [S, S] float32 probabilities.
        box: [4] float32 x1, y1, x2, y2 in image pixels; may reach beyond the image.
        height, width: the image's size.
        rule: `exact` evaluates the mask bilinearly at every pixel's centre, zero beyond its cells (detectron2);
            `bicubic` does so with cubic convolution (the tutorial's other choice), which keeps curved edges rounder;
            `torchvision` pads the mask by one cell, rounds the box to whole pixels and stretches the mask over it.
        threshold: a pixel belongs to the object where its value is at least this.

    Raises:
        ValueError: the box is not finite.
    """
    spans = pixel_spans(box[None], np.array([[height, width]]), mask.shape[0], rule)
    blocks = list(_paste_blocks(mask, spans, 0, rule, threshold))
    columns = blocks[0].columns if len(blocks) == 1 else np.concatenate([block.columns for block in blocks])
    return PastedMask(columns, blocks[0].top, blocks[0].left)


def _paste_blocks(
    mask: Float32Array, spans: PixelSpans, index: int, rule: PasteRule, threshold: float
) -> Iterator[PastedMask]:
    """`paste_mask` on the spans at `index`, a block of columns at a time, left to right; one empty block where the
    window is empty."""
    side = mask.shape[0]
    (left, top), (num_columns, num_rows) = spans.first[index].tolist(), spans.count[index].tolist()
    (left_edge, top_edge), (across, down) = spans.origin[index].tolist(), spans.scale[index].tolist()

    def weights(first: int, count: int, origin: float, scale: float) -> Float32Array:
        centres = np.arange(first, first + count, dtype=np.float64) + 0.5
        return _weights((centres - origin) * scale - 0.5, side, rule)

    stretched = mask.T @ weights(top, num_rows, top_edge, down).T
    at_once = max(_PIXELS_AT_ONCE // max(num_rows, 1), 1)
    for start in range(left, left + max(num_columns, 1), at_once):
        count = min(at_once, left + num_columns - start)
        values = weights(start, count, left_edge, across) @ stretched
        yield PastedMask(values >= threshold, top, start)


def _weights(positions: Float64Array, side: int, rule: PasteRule) -> Float32Array:
    """Weights [P, side] of a mask's cells at positions [P] in units of cells."""
    if rule == "bicubic":
        return _cubic_weights(positions, side)
    if rule == "torchvision":
        # The border's value continues outwards in the padded mask, and the padding is zero.
        positions = np.clip(positions, 0, side + 1) - 1.0
    return _hat_weights(positions, side)


def _hat_weights(positions: Float64Array, side: int) -> Float32Array:
    """Linear interpolation weights [len(positions), side] for cell coordinates; zero beyond the cells."""
    cells = np.arange(side, dtype=np.float64)
    weights = 1.0 - np.abs(positions[:, None] - cells)
    return np.maximum(weights, 0.0).astype(np.float32)


def _cubic_weights(positions: Float64Array, side: int) -> Float32Array:
    """Cubic convolution weights (Keys, 1981, with -0.75 as torch and OpenCV have it), as `_hat_weights`."""
    distance = np.abs(positions[:, None] - np.arange(side, dtype=np.float64))
    near = (1.25 * distance - 2.25) * distance**2 + 1.0
    far = -0.75 * (((distance - 5.0) * distance + 8.0) * distance - 4.0)
    return np.where(distance <= 1.0, near, np.where(distance < 2.0, far, 0.0)).astype(np.float32)


def run_lengths(mask: PastedMask, height: int, width: int) -> NDArray[np.int64]:
    """COCO's uncompressed counts of the whole image: column-major runs, background first, height * width in all."""
    return counts_between(_changes(mask, height), height, width)


def _changes(mask: PastedMask, height: int) -> NDArray[np.int64]:
    """Column-major positions in the image where a run of the mask starts or ends, in order; none goes on over the end
    of its column."""
    window_width, window_height = mask.columns.shape
    # A background row at both ends of every column makes each run start and end within its column.
    edged = np.zeros((window_width, window_height + 2), dtype=np.int8)
    edged[:, 1:-1] = mask.columns
    changes = np.flatnonzero(np.diff(edged, axis=1))
    column, row = np.divmod(changes, window_height + 1)
    return (mask.left + column) * height + mask.top + row


def counts_between(positions: NDArray[np.int64], height: int, width: int) -> NDArray[np.int64]:
    """COCO's uncompressed counts from where the runs of a mask start and end.

    Args:
        positions: column-major positions in the image, in order: first pixel of a run, first pixel after it, and so on.
        height, width: the image's size.
    """
    # A run that ends where the next begins goes on over the column's end: the pair of changes vanishes.
    joined = np.flatnonzero(positions[1:-1:2] == positions[2::2])
    if len(joined):
        positions = np.delete(positions, np.concatenate((2 * joined + 1, 2 * joined + 2)))
    counts = np.diff(positions, prepend=0, append=height * width)
    # Where the mask reaches the last pixel there is no background run after it.
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def encode_counts(counts: NDArray[np.int64], height: int, width: int) -> str:
    """COCO's compressed run lengths, the bytes that pycocotools makes of the same pixels."""
    rle = pycocotools.mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    encoded: bytes = rle["counts"]
    return encoded.decode("ascii")


def encode_masks(
    masks: Float32Array,
    boxes: Float32Array,
    height: int,
    width: int,
    *,
    rule: PasteRule = "exact",
    threshold: float = 0.5,
) -> list[str]:
    """Soft masks [D, S, S] on their boxes [D, 4] -> COCO compressed run lengths of the image (see `paste_mask`)."""
    spans = pixel_spans(boxes, np.array([[height, width]]), masks.shape[-1], rule)
    encoded = []
    for index, mask in enumerate(masks):
        blocks = [_changes(block, height) for block in _paste_blocks(mask, spans, index, rule, threshold)]
        changes = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        encoded.append(encode_counts(counts_between(changes, height, width), height, width))
    return encoded


def encode_mask(
    mask: Float32Array, box: Float32Array, height: int, width: int, *, rule: PasteRule = "exact", threshold: float = 0.5
) -> str:
    """`encode_masks` of one mask [S, S] on its box [4]."""
    return encode_masks(mask[None], box[None], height, width, rule=rule, threshold=threshold)[0]


def decode_mask(counts: str, height: int, width: int) -> NDArray[np.bool_]:
    """COCO compressed run lengths -> [height, width] bool."""
    decoded: NDArray[np.uint8] = pycocotools.mask.decode({"size": [height, width], "counts": counts.encode("ascii")})
    return decoded.astype(np.bool_)
