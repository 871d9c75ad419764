"""A mask as one polygon, for formats that know no other shape: its pieces and holes joined by bridges without width."""

import numpy as np
import numpy.typing as npt

from maskrcnn_core.data.outlines import outlines
from maskrcnn_core.data.segmentation import ObjectMask

Points = npt.NDArray[np.float64]

# Half a pixel is nothing for an object of 100 pixels, and half of one that is a pixel wide.
_MOST_OF_EXTENT = 0.1


def mask_polygon(mask: ObjectMask, tolerance: float) -> Points:
    """The outline of a mask as one closed polygon.

    Every piece and every hole is reached from the largest outline over its shortest bridge, there and back on the same
    line; holes run against the outline's sense, so that they stay empty by the even-odd and the non-zero rule alike.

    Args:
        mask: with at least one pixel.
        tolerance: how far the polygon may be off the outline, pixels, and at most a tenth of the object's shorter side;
            0 = not at all.

    Returns:
        [V, 2] x, y in pixels of the original image (pixel j reaches from j to j + 1); the last point joins the first.
    """
    rings = [
        simplified(ring, min(tolerance, _MOST_OF_EXTENT * float(np.ptp(ring, axis=0).min())))
        for ring in outlines(mask.pixels)
    ]
    rings.sort(key=lambda ring: -float(np.prod(np.ptp(ring, axis=0))))
    path = rings[0]
    for ring in rings[1:]:
        path = _bridged(path, ring)
    placed: Points = path + np.array([mask.left, mask.top])
    return placed


def _bridged(path: Points, ring: Points) -> Points:
    """`path` with a way to `ring`, around it and back, where the two are nearest."""
    distances = ((path[:, None] - ring[None]) ** 2).sum(axis=2)
    here, there = np.unravel_index(np.argmin(distances), distances.shape)
    around = np.roll(ring, -int(there), axis=0)
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
