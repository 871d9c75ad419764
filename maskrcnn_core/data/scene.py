"""A picture with its objects, mirrored, cut out of its enlargement or laid on a canvas: pixels, boxes, masks and
keypoints together.

Masks come out as pixels of the new frame: polygons are drawn there, at its resolution; run lengths are resampled to
nearest. A box is then the tight rectangle of its mask, so that cropped objects have the box of what is left of them.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from maskrcnn_core.data.coco.dataset import CocoObject
from maskrcnn_core.data.segmentation import ObjectMask, Segmentation, object_mask, tight_mask
from maskrcnn_core.data.transform import ResizeRule, resized_part

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """A picture and its objects.

    Attributes:
        pixels: [3, H, W] uint8 RGB.
        objects: in pixels of this picture.
    """

    pixels: Tensor
    objects: tuple[CocoObject, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[1], self.pixels.shape[2]


@dataclass(frozen=True)
class Placement:
    """Which part of which enlargement of a picture becomes the new one.

    Attributes:
        size: (height, width) to which the whole picture is resized, pixels.
        top, left: first row and column of the part in it.
        part: (height, width) of the part.
    """

    size: tuple[int, int]
    top: int
    left: int
    part: tuple[int, int]


def mirrored(scene: Scene, keypoint_sources: Sequence[int] = ()) -> Scene:
    """Left and right exchanged.

    Args:
        keypoint_sources: of `keypoints.mirror_keypoints`: left and right change names as well.
    """
    height, width = scene.size
    objects = []
    for item in scene.objects:
        x1, y1, x2, y2 = item.box
        segmentation = None if item.segmentation is None else _mirrored_outline(item.segmentation, height, width)
        keypoints = None
        if item.keypoints is not None:
            points = np.array(item.keypoints).reshape(-1, 3)[list(keypoint_sources)]
            # A COCO keypoint is the index of a pixel: column 0 becomes column width - 1.
            points[:, 0] = np.where(points[:, 2] > 0, width - 1 - points[:, 0], 0.0)
            keypoints = tuple(points.ravel().tolist())
        box = (width - x2, y1, width - x1, y2)
        objects.append(replace(item, box=box, segmentation=segmentation, keypoints=keypoints))
    return Scene(scene.pixels.flip(-1), tuple(objects))


def _mirrored_outline(segmentation: Segmentation, height: int, width: int) -> "list[array[float]] | ObjectMask":
    """Polygons stay polygons, to be drawn at whatever resolution comes; run lengths become pixels."""
    if isinstance(segmentation, list):
        turned = []
        for polygon in segmentation:
            points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
            points[:, 0] = width - points[:, 0]
            turned.append(array("d", points.ravel()))
        return turned
    mask = object_mask(segmentation, height, width)
    return ObjectMask(mask.pixels[:, ::-1], left=width - mask.left - mask.pixels.shape[1], top=mask.top)


def placed(
    scene: Scene,
    where: Placement,
    *,
    resize: ResizeRule = "float",
    keypoint_offset: float = 0.5,
    min_pixels: int = 1,
) -> Scene:
    """The scene as a part of its enlargement; objects that are out of it, or too small in it, are gone.

    Args:
        keypoint_offset: see `keypoints.pixel_offset`.
        min_pixels: a mask with fewer pixels is too small.

    Returns:
        Objects in their order. A keypoint outside of the part becomes (0, 0, 0), not annotated.
    """
    pixels = resized_part(scene.pixels, where.size, where.top, where.left, where.part, resize)
    objects = (_placed_object(item, scene.size, where, keypoint_offset, min_pixels) for item in scene.objects)
    return Scene(pixels, tuple(item for item in objects if item is not None))


def on_canvas(
    scene: Scene, size: tuple[int, int], color: tuple[int, int, int], *, top: int = 0, left: int = 0
) -> Scene:
    """The scene on a canvas of one colour.

    Args:
        scene: with masks as pixels, as of `placed`.
        size: (height, width) of the canvas; the scene fits in.
        color: RGB 0..255.
        top, left: row and column of the canvas where the scene begins.
    """
    canvas = torch.tensor(color, dtype=torch.uint8).expand(*size, 3).contiguous().permute(2, 0, 1)
    canvas[:, top : top + scene.size[0], left : left + scene.size[1]] = scene.pixels
    return Scene(canvas, tuple(_moved(item, top, left) for item in scene.objects))


def _moved(item: CocoObject, down: int, right: int) -> CocoObject:
    if (down, right) == (0, 0):
        return item
    x1, y1, x2, y2 = item.box
    mask, keypoints = item.segmentation, item.keypoints
    if mask is not None:
        assert isinstance(mask, ObjectMask)
        mask = replace(mask, left=mask.left + right, top=mask.top + down)
    if keypoints is not None:
        points = np.array(keypoints, dtype=np.float64).reshape(-1, 3)
        points[points[:, 2] > 0, :2] += (right, down)
        keypoints = tuple(points.ravel().tolist())
    box = (x1 + right, y1 + down, x2 + right, y2 + down)
    return replace(item, box=box, segmentation=mask, keypoints=keypoints)


def _placed_object(
    item: CocoObject, size: tuple[int, int], where: Placement, keypoint_offset: float, min_pixels: int
) -> CocoObject | None:
    down, across = where.size[0] / size[0], where.size[1] / size[1]
    mask = None
    if item.crowd or item.segmentation is None:
        box = _clipped(item.box, where, down, across)
        if box is None:
            return None
        area = item.area * down * across
    else:
        mask = _placed_mask(item, size, where, down, across)
        area = float(mask.pixels.sum())
        if area < max(min_pixels, 1):
            return None
        box = mask.box
    keypoints = None
    if item.keypoints is not None:
        keypoints = _placed_keypoints(item.keypoints, where, down, across, keypoint_offset)
    return replace(item, box=box, area=area, segmentation=mask, keypoints=keypoints)


def _clipped(box: Box, where: Placement, down: float, across: float) -> Box | None:
    x1, x2 = (min(max(x * across - where.left, 0.0), float(where.part[1])) for x in (box[0], box[2]))
    y1, y2 = (min(max(y * down - where.top, 0.0), float(where.part[0])) for y in (box[1], box[3]))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def _placed_mask(item: CocoObject, size: tuple[int, int], where: Placement, down: float, across: float) -> ObjectMask:
    assert item.segmentation is not None
    if isinstance(item.segmentation, list):  # polygons: drawn anew, as sharp as the new picture
        moved = []
        for polygon in item.segmentation:
            points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2) * (across, down) - (where.left, where.top)
            moved.append(points.ravel().tolist())
        return object_mask(moved, *where.part)
    old = object_mask(item.segmentation, *size)
    rows = _nearest(where.part[0], where.top, (size[0], where.size[0]), old.top, old.pixels.shape[0])
    columns = _nearest(where.part[1], where.left, (size[1], where.size[1]), old.left, old.pixels.shape[1])
    pixels = old.pixels[rows[1]][:, columns[1]]
    return tight_mask(pixels, left=columns[0], top=rows[0])


def _nearest(
    count: int, start: int, lengths: tuple[int, int], first: int, length: int
) -> tuple[int, "np.ndarray[tuple[int], np.dtype[np.int64]]"]:
    """The new pixels of an axis that show the old ones `first` .. `first + length - 1`: the first of them, and for each
    the old pixel that it shows, counted from `first`. `lengths`: of the axis before and after."""
    before, after = lengths
    # Whole numbers: a new pixel whose centre falls between two old ones shows the second, whatever rounds how.
    shown = (2 * (np.arange(count, dtype=np.int64) + start) + 1) * before // (2 * after) - first
    low, high = np.searchsorted(shown, 0), np.searchsorted(shown, length)
    return int(low), shown[low:high]


def _placed_keypoints(
    keypoints: tuple[float, ...], where: Placement, down: float, across: float, offset: float
) -> tuple[float, ...]:
    points = np.array(keypoints, dtype=np.float64).reshape(-1, 3)
    points[:, 0] = (points[:, 0] + offset) * across - where.left
    points[:, 1] = (points[:, 1] + offset) * down - where.top
    inside = (points[:, :2] >= 0).all(axis=1) & (points[:, 0] < where.part[1]) & (points[:, 1] < where.part[0])
    points[:, :2] -= offset
    points[~inside | (points[:, 2] <= 0)] = 0.0
    return tuple(points.ravel().tolist())
