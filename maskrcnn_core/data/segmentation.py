"""COCO segmentations to pixels: polygons and run lengths, with pycocotools as the reference for every pixel.

A segmentation is what a COCO file holds: a list of polygons (flat x, y, x, y, ... in original pixels), or a run-length
encoding {"size": [height, width], "counts": text or list}. Runs go down the columns, background first.
`object_mask` decodes only the rectangle that holds the object, so that its cost does not grow with the image.

pycocotools walks along a polygon's outline in steps of a fifth of a pixel, in whole numbers of 32 bits: a point far
away costs any amount of memory, or ends the process. So a polygon that reaches farther than `reach` is cut to its image
before pycocotools sees it (`nearby_polygon`); one that does not is given to it as it is, for the very same pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask


@dataclass(frozen=True)
class ObjectMask:
    """The pixels of one object.

    Attributes:
        pixels: [h, w] bool, the object inside its tight rectangle; [0, 0] for an object without a pixel.
        left, top: column and row of `pixels[0, 0]` in the original image.
    """

    pixels: NDArray[np.bool_]
    left: int
    top: int

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 of the rectangle."""
        height, width = self.pixels.shape
        return float(self.left), float(self.top), float(self.left + width), float(self.top + height)


_FARTHEST = 1e15  # farther points are brought here before edges are cut: their differences stay exact enough
LONGEST_OUTLINE = 2_000_000
"""Of a polygon, pixels; pycocotools holds some 40 bytes for each."""

Segmentation: TypeAlias = "Sequence[Sequence[float]] | Mapping[str, Any] | ObjectMask"


def tight_mask(pixels: NDArray[np.bool_], left: int, top: int) -> ObjectMask:
    """The mask [h, w] bool, whose first pixel lies at `left`, `top`, cut to the rectangle that holds its object."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if len(rows) == 0:
        return ObjectMask(np.zeros((0, 0), dtype=np.bool_), left=0, top=0)
    inside = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return ObjectMask(inside, left=left + int(columns[0]), top=top + int(rows[0]))


def rasterise(segmentation: Segmentation, height: int, width: int) -> NDArray[np.bool_]:
    """The object's pixels in the whole image, [height, width] bool; several polygons are united.

    Args:
        segmentation: polygons, compressed or uncompressed run lengths, or a mask as it is.
        height, width: size of the original image, pixels.

    Raises:
        ValueError: malformed run lengths, or run lengths of another size.
    """
    mask = object_mask(segmentation, height, width)
    image = np.zeros((height, width), dtype=np.bool_)
    h, w = mask.pixels.shape
    image[mask.top : mask.top + h, mask.left : mask.left + w] = mask.pixels
    return image


def object_mask(segmentation: Segmentation, height: int, width: int) -> ObjectMask:
    """The object's pixels inside their tight rectangle. Arguments and errors as `rasterise`."""
    if isinstance(segmentation, ObjectMask):
        return segmentation
    runs = run_lengths(segmentation, height, width)
    ends = np.cumsum(runs)
    starts, ends = ends[0:-1:2], ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if len(starts) == 0:
        return ObjectMask(np.zeros((0, 0), dtype=np.bool_), left=0, top=0)
    first_column, first_row = np.divmod(starts, height)
    last_column, last_row = np.divmod(ends - 1, height)
    left, right = int(first_column[0]), int(last_column[-1]) + 1
    top, bottom = int(first_row.min()), int(last_row.max()) + 1
    if (first_column != last_column).any():  # a run that goes on in the next column touches bottom and top
        top, bottom = 0, height
    h, w = bottom - top, right - left
    begin = (first_column - left) * h + (first_row - top)
    steps = np.zeros(h * w + 1, dtype=np.int8)
    np.add.at(steps, begin, 1)
    np.add.at(steps, begin + (ends - starts), -1)
    pixels = np.cumsum(steps[:-1], dtype=np.int8).view(np.bool_).reshape(w, h).T
    return ObjectMask(pixels, left=left, top=top)


def reach(height: int, width: int) -> float:
    """How far outside of an image of this size a coordinate may lie before it is cut off, pixels."""
    return 4096.0 + 4.0 * max(height, width)


def nearby_polygon(polygon: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """The same polygon, flat x, y, ...; one that reaches too far, cut to the image and a pixel around it.

    Cutting leaves every edge inside of the image where it was; of a polygon that is wholly outside nothing is left.

    Raises:
        ValueError: a coordinate is no finite number, or the outline is absurdly long even inside of the image.
    """
    if not len(polygon):
        return polygon
    low, high, far = float(polygon.min()), float(polygon.max()), reach(height, width)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("a polygon with a coordinate that is no finite number")
    is_near = low >= -far and high <= far + max(height, width)
    if is_near and (len(polygon) * (high - low) <= LONGEST_OUTLINE or _outline(polygon) <= LONGEST_OUTLINE):
        return polygon
    cut = np.clip(polygon, -_FARTHEST, _FARTHEST).reshape(-1, 2)
    for axis, side in ((0, width), (1, height)):
        cut = _half_plane(cut, axis, -1.0, 1.0)
        cut = _half_plane(cut, axis, side + 1.0, -1.0)
    if len(cut) and _outline(cut.ravel()) > LONGEST_OUTLINE:
        raise ValueError(f"a polygon whose outline is longer than {LONGEST_OUTLINE} pixels inside of its image")
    return cut.ravel() if len(cut) >= 3 else np.zeros(0)


def _outline(polygon: NDArray[np.float64]) -> float:
    """Steps of a pixel along the outline."""
    points = polygon.reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _half_plane(points: NDArray[np.float64], axis: int, bound: float, sign: float) -> NDArray[np.float64]:
    """The part of a polygon [P, 2] with sign * (coordinate - bound) >= 0 (Sutherland and Hodgman, CACM 1974)."""
    if not len(points):
        return points
    depth = sign * (points[:, axis] - bound)
    after, depth_after = np.roll(points, -1, axis=0), np.roll(depth, -1)
    crosses = (depth >= 0) != (depth_after >= 0)
    share = np.divide(depth, depth - depth_after, out=np.zeros_like(depth), where=crosses)
    met = points + share[:, None] * (after - points)
    met[:, axis] = bound
    # Of each edge: its start where that is inside, then where it meets the bound.
    both = np.stack([points, met], axis=1).reshape(-1, 2)
    kept: NDArray[np.float64] = both[np.stack([depth >= 0, crosses], axis=1).ravel()]
    return kept


def run_lengths(
    segmentation: "Sequence[Sequence[float]] | Mapping[str, Any]", height: int, width: int
) -> NDArray[np.int64]:
    """Lengths of the object's runs over the columns, background first, [runs] int64; they add up to height * width.

    Raises:
        ValueError: as `rasterise`.
    """
    if not isinstance(segmentation, Mapping):
        near = (nearby_polygon(np.asarray(polygon, dtype=np.float64), height, width) for polygon in segmentation)
        polygons = [polygon for polygon in near if len(polygon)]
        if not polygons:
            return np.array([height * width], dtype=np.int64)
        rle: Mapping[str, Any] = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    else:
        rle = segmentation
    size, counts = rle.get("size"), rle.get("counts")
    if size is None or list(size) != [height, width]:
        raise ValueError(f"run lengths of size {size}, expected the image's [height, width] = [{height}, {width}]")
    if isinstance(counts, str | bytes):
        runs = _decompress(counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts)
    elif isinstance(counts, list) and set(map(type, counts)) <= {int}:
        runs = np.asarray(counts, dtype=np.int64)
    else:
        raise ValueError("run lengths whose 'counts' is neither text nor a list of whole numbers")
    if len(runs) and (runs.min() < 0 or runs.max() > height * width):
        raise ValueError(f"malformed run lengths: a run below 0, or longer than the image of {height} x {width}")
    if int(runs.sum()) != height * width:
        total = int(runs.sum())
        raise ValueError(f"malformed run lengths: they add up to {total} pixels, expected {height} x {width}")
    return runs


def _decompress(counts: bytes) -> NDArray[np.int64]:
    """COCO's text form: 5 bits in a character, low bits first; from the fourth number on, differences.

    A difference is to the number two before. As rleFrString of cocoapi's maskApi.c, without a loop over characters.
    """
    codes = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if len(codes) == 0:
        return np.zeros(0, dtype=np.int64)
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("malformed run lengths: 'counts' holds a character outside COCO's alphabet")
    is_last = (codes & 0x20) == 0
    if not is_last[-1]:
        raise ValueError("malformed run lengths: 'counts' ends within a number")
    ends = np.flatnonzero(is_last)
    begins = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - begins + 1
    if lengths.max() > 12:
        raise ValueError("malformed run lengths: 'counts' holds a number of more than 60 bits")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(begins, lengths))
    numbers: NDArray[np.int64] = np.add.reduceat((codes & 0x1F) << shifts, begins)
    negative = (codes[ends] & 0x10) != 0
    numbers[negative] -= np.int64(1) << (5 * lengths[negative])
    if len(numbers) > 3:
        numbers[1::2] = np.cumsum(numbers[1::2])
        numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
