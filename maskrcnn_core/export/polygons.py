"""A mask as one polygon, for formats that know no other shape: its pieces and holes joined by bridges without width."""

import numpy as np
import numpy.typing as npt

from maskrcnn_core.data.outlines import outlines
from maskrcnn_core.data.segmentation import ObjectMask

Points = npt.NDArray[np.float64]

# Half a pixel is nothing for an object of 100 pixels, and half of one that is a pixel wide.
_MOST_OF_EXTENT = 0.1

# Outlines take some 40 bytes a pixel, bridges a look at every pair of points.
_MOST_OUTLINED = 1 << 24
_MOST_RINGS = 500
_DISTANCES_AT_ONCE = 1 << 21


def mask_polygon(mask: ObjectMask, tolerance: float) -> Points:
    """The outline of a mask as one closed polygon.

    Every piece and every hole is reached from the largest outline over its shortest bridge, there and back on the same
    line; holes run against the outline's sense, so that they stay empty by the even-odd and the non-zero rule alike.

    Args:
        mask: with at least one pixel. Of an object of more than 16 million pixels only every second row and column
            (or fourth, ...) is looked at, of one in more than 500 pieces and holes the largest.
        tolerance: how far the polygon may be off the outline, pixels, and at most a tenth of the object's shorter side;
            0 = not at all.

    Returns:
        [V, 2] x, y in pixels of the original image (pixel j reaches from j to j + 1); the last point joins the first.
    """
    step = _step(mask)
    rings = [ring * step for ring in outlines(mask.pixels[::step, ::step])]
    rings.sort(key=lambda ring: -float(np.prod(np.ptp(ring, axis=0))))
    rings = [
        simplified(ring, min(tolerance, _MOST_OF_EXTENT * float(np.ptp(ring, axis=0).min())))
        for ring in rings[:_MOST_RINGS]
    ]
    path = rings[0]
    for ring in rings[1:]:
        path = _bridged(path, ring)
    placed: Points = path + np.array([mask.left, mask.top])
    return placed


def _step(mask: ObjectMask) -> int:
    """Every how manyth row and column of a mask its outline is made from: more than one of very large objects only."""
    step = 1
    while mask.pixels.size > _MOST_OUTLINED * step**2 and mask.pixels[:: 2 * step, :: 2 * step].any():
        step *= 2
    return step


def _nearest(path: Points, ring: Points) -> tuple[int, int]:
    """Indices of the two points that are nearest to each other; of equal ones the first."""
    rows = max(1, _DISTANCES_AT_ONCE // len(ring))
    best = (np.inf, 0, 0)
    for start in range(0, len(path), rows):
        distances = ((path[start : start + rows, None] - ring[None]) ** 2).sum(axis=2)
        here, there = divmod(int(np.argmin(distances)), len(ring))
        best = min(best, (float(distances[here, there]), start + here, there))
    return best[1], best[2]


def _bridged(path: Points, ring: Points) -> Points:
    """`path` with a way to `ring`, around it and back, where the two are nearest."""
    here, there = _nearest(path, ring)
    around = np.roll(ring, -there, axis=0)
    return np.concatenate([path[: here + 1], around, around[:1], path[here:]])


def simplified(ring: Points, tolerance: float) -> Points:
    """A closed ring with fewer points (Douglas and Peucker 1973, on the two halves between far points).

    Args:
        ring: [V, 2], the last point joins the first.
        tolerance: largest distance of a point left out from the new ring, pixels.

    Returns:
        [V', 2]; the ring itself where less than a triangle would stay.
    """
    if tolerance <= 0 or len(ring) <= 3:
        return ring
    far = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    kept = np.zeros(len(closed), np.bool_)
    kept[[0, far, len(ring)]] = True
    spans = [(0, far), (far, len(ring))]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        distances = _distances(closed[first + 1 : last], closed[first], closed[last])
        worst = int(distances.argmax())
        if distances[worst] > tolerance:
            middle = first + 1 + worst
            kept[middle] = True
            spans += [(first, middle), (middle, last)]
    fewer = ring[kept[:-1]]
    return fewer if len(fewer) >= 3 else ring


def _distances(points: Points, start: Points, end: Points) -> Points:
    """[V] distance of points from the line piece between two."""
    along = end - start
    length = float(along @ along)
    share = np.clip((points - start) @ along / length, 0, 1) if length else np.zeros(len(points))
    distances: Points = np.linalg.norm(points - start - share[:, None] * along, axis=1)
    return distances
