"""Pixels to COCO segmentations: polygons that pycocotools draws back exactly, and run lengths.

The opposite direction is `data/segmentation.py`.
"""

from typing import Any

import contourpy
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Mask = NDArray[np.bool_]


def polygon_or_rle(mask: Mask) -> list[list[float]] | dict[str, Any]:
    """The COCO segmentation of one object; drawing it gives the mask again, pixel for pixel.

    Args:
        mask: [H, W] bool.

    Returns:
        One polygon where the mask is one piece without holes, else compressed run lengths.
    """
    polygons = outlines(mask)
    if len(polygons) == 1:
        return [polygons[0].ravel().tolist()]
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def uncompressed_rle(mask: Mask) -> dict[str, Any]:
    """COCO run lengths as a list, down the columns, beginning with a run of zeros (which may be 0 long).

    Args:
        mask: [H, W] bool.
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    leading = [0] if flat.size and flat[0] else []
    edges = np.concatenate([leading, [0], changes, [flat.size]]).astype(np.int64)
    return {"size": list(mask.shape), "counts": np.diff(edges).tolist()}


def outlines(mask: Mask) -> list[NDArray[np.float64]]:
    """The closed outlines of all pieces and holes, without collinear points.

    They run halfway between the centres of the pixels inside and outside, with cut corners: away from the corners just
    on the pixels' edges, so that an outline's extent is the tight box of its pixels.

    Args:
        mask: [H, W] bool.

    Returns:
        One [V, 2] array of x, y each, in pixels; the last point joins the first.
    """
    padded = np.pad(mask, 1).astype(np.float32)
    polygons = []
    for line in contourpy.contour_generator(z=padded).lines(0.5):
        # Padding moves pixels by one, and pixel j has its centre at j + 0.5.
        points = np.asarray(line, dtype=np.float64)[:-1] - 0.5
        before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
        corner = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0] != 0
        polygons.append(points[corner])
    return polygons
