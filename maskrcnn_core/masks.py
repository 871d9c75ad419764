"""From a soft mask on its box to COCO run lengths of the whole image, without ever making the whole image.

A soft mask [S, S] covers its box. Bilinear and bicubic resampling are separable, so its value on the pixels of the box
is W_y @ mask @ W_x^T with one small weight matrix an axis. The result is thresholded, and only the box's columns are
run-length encoded; everything outside is counted, not stored. Works on the host, on numpy arrays.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

PasteRule = Literal["exact", "bicubic", "torchvision"]

Float32Array = NDArray[np.float32]


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
    """
    side = mask.shape[0]
    axis = {"exact": _exact_axis, "bicubic": _bicubic_axis, "torchvision": _torchvision_axis}[rule]
    top, rows = axis(float(box[1]), float(box[3]), height, side)
    left, columns = axis(float(box[0]), float(box[2]), width, side)
    values = columns @ (mask.T @ rows.T)
    return PastedMask(values >= threshold, top, left)


def _exact_axis(low: float, high: float, limit: int, side: int) -> tuple[int, Float32Array]:
    """First pixel and weights [pixels, side] of the pixels whose centres get a contribution from the mask's cells."""
    # Half a cell: how far outside the box the outermost cells are still felt.
    first, positions = _pixel_positions(low, high, limit, side, reach=0.5)
    return first, _hat_weights(positions, side)


def _bicubic_axis(low: float, high: float, limit: int, side: int) -> tuple[int, Float32Array]:
    """As `_exact_axis` with cubic weights, which reach one cell further."""
    first, positions = _pixel_positions(low, high, limit, side, reach=1.5)
    return first, _cubic_weights(positions, side)


def _pixel_positions(low: float, high: float, limit: int, side: int, reach: float) -> tuple[int, NDArray[np.float64]]:
    """First pixel, and in cell coordinates the centres of the pixels at most `reach` cells outside the box."""
    scale = side / max(high - low, 1e-6)
    first = max(int(np.ceil(low - reach / scale - 0.5)), 0)
    last = min(int(np.floor(high + reach / scale - 0.5)), limit - 1)
    centres = np.arange(first, max(last + 1, first), dtype=np.float64) + 0.5
    return first, (centres - low) * scale - 0.5


def _torchvision_axis(low: float, high: float, limit: int, side: int) -> tuple[int, Float32Array]:
    """As `_exact_axis` by torchvision's rule: the padded mask stretched over whole pixels."""
    padded = side + 2
    centre, half = (low + high) * 0.5, (high - low) * 0.5 * (padded / side)
    first, last = int(np.float32(centre - half)), int(np.float32(centre + half))
    length = max(last - first + 1, 1)
    start, stop = max(first, 0), min(last + 1, limit)
    positions = (np.arange(start, max(stop, start), dtype=np.float64) - first + 0.5) * (padded / length) - 0.5
    # The border's value continues outwards in the padded mask, and the padding is zero.
    return start, _hat_weights(np.clip(positions, 0, padded - 1) - 1.0, side)


def _hat_weights(positions: NDArray[np.float64], side: int) -> Float32Array:
    """Linear interpolation weights [len(positions), side] for cell coordinates; zero beyond the cells."""
    cells = np.arange(side, dtype=np.float64)
    weights = 1.0 - np.abs(positions[:, None] - cells)
    return np.maximum(weights, 0.0).astype(np.float32)


def _cubic_weights(positions: NDArray[np.float64], side: int) -> Float32Array:
    """Cubic convolution weights (Keys, 1981, with -0.75 as torch and OpenCV have it), as `_hat_weights`."""
    distance = np.abs(positions[:, None] - np.arange(side, dtype=np.float64))
    near = (1.25 * distance - 2.25) * distance**2 + 1.0
    far = -0.75 * (((distance - 5.0) * distance + 8.0) * distance - 4.0)
    return np.where(distance <= 1.0, near, np.where(distance < 2.0, far, 0.0)).astype(np.float32)


def run_lengths(mask: PastedMask, height: int, width: int) -> NDArray[np.int64]:
    """COCO's uncompressed counts of the whole image: column-major runs, background first, height * width in all."""
    window_width, window_height = mask.columns.shape
    # A background row at both ends of every column makes each run start and end within its column.
    edged = np.zeros((window_width, window_height + 2), dtype=np.int8)
    edged[:, 1:-1] = mask.columns
    changes = np.flatnonzero(np.diff(edged, axis=1))
    column, row = np.divmod(changes, window_height + 1)
    positions = (mask.left + column) * height + mask.top + row
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


def encode_mask(
    mask: Float32Array, box: Float32Array, height: int, width: int, *, rule: PasteRule = "exact", threshold: float = 0.5
) -> str:
    """Soft mask on its box -> COCO compressed run lengths of the image (see `paste_mask`)."""
    pasted = paste_mask(mask, box, height, width, rule=rule, threshold=threshold)
    return encode_counts(run_lengths(pasted, height, width), height, width)


def decode_mask(counts: str, height: int, width: int) -> NDArray[np.bool_]:
    """COCO compressed run lengths -> [height, width] bool."""
    decoded: NDArray[np.uint8] = pycocotools.mask.decode({"size": [height, width], "counts": counts.encode("ascii")})
    return decoded.astype(np.bool_)
