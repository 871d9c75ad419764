"""Which rectangle of a training picture, or around it, becomes the network's input: zooming out and cuts that keep
objects (Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, sections 2.2 and 3.6).

First the picture is laid at random on a larger canvas, which makes its objects small; then a rectangle of that canvas
is cut, in which some object lies well enough. Both are one *window*, so that the picture is resized but once. An object
whose centre is not in the window is gone; a crowd stays as far as it is seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_core.data.coco.dataset import CocoObject
from maskrcnn_core.data.letterbox import letterbox
from maskrcnn_core.data.scene import Placement, Scene, on_canvas, placed
from maskrcnn_core.data.transform import ResizeRule

# Sides of a cut as shares of the canvas's, and its width over its height (SSD's code; the paper has areas of .1 to 1).
_SIDES = (0.3, 1.0)
_ASPECTS = (0.5, 2.0)
# Rectangles tried for one overlap before another overlap is drawn, as many as torchvision tries.
_TRIALS = 40

LETTERBOX_COLOR = (128, 128, 128)
"""The grey of letterboxes (`letterbox.GREY`) in whole numbers."""


@dataclass(frozen=True)
class Framing:
    """How windows are drawn.

    Attributes:
        zoom_out: most that a canvas's sides are in those of the picture; 1 = no canvas.
        zoom_probability: share of pictures that are laid on one.
        overlaps: one is drawn for each picture: some object, with its centre in the cut, must have at least this IoU
            with it. 1 and above = nothing is cut; empty = never.
        min_pixels: as `scene.placed`.
        canvas_color: RGB 0..255.
    """

    zoom_out: float = 1.0
    zoom_probability: float = 0.5
    overlaps: tuple[float, ...] = ()
    min_pixels: int = 4
    canvas_color: tuple[int, int, int] = (124, 116, 104)


@dataclass(frozen=True)
class Window:
    """A rectangle in a picture's frame, that may reach beyond it: first row and column, sides, pixels."""

    top: float
    left: float
    height: float
    width: float


def draw_window(
    size: tuple[int, int], objects: Sequence[CocoObject], rule: Framing, rng: np.random.Generator
) -> Window:
    """A random window of a picture of `size` (height, width) with these objects."""
    window = Window(0.0, 0.0, float(size[0]), float(size[1]))
    if rule.zoom_out > 1.0 and rng.random() < rule.zoom_probability:
        window = _canvas(size, rng.uniform(1.0, rule.zoom_out), rng)
    boxes = np.array([item.box for item in objects if not item.crowd], dtype=np.float64).reshape(-1, 4)
    for overlap in rng.permutation(rule.overlaps):
        if overlap >= 1.0:
            break
        cuts = _draw_cuts(window, rng)
        fitting = np.flatnonzero(_keep_an_object(cuts, boxes, overlap))
        if len(fitting):
            top, left, height, width = cuts[fitting[0]].tolist()
            return Window(top, left, height, width)
    return window


def _canvas(size: tuple[int, int], factor: float, rng: np.random.Generator) -> Window:
    room = [(factor - 1.0) * side for side in size]
    return Window(-rng.uniform(0.0, room[0]), -rng.uniform(0.0, room[1]), size[0] * factor, size[1] * factor)


def _draw_cuts(window: Window, rng: np.random.Generator) -> NDArray[np.float64]:
    """[T, 4] top, left, height, width of rectangles in the window whose aspect is allowed; T may be 0."""
    sides = rng.uniform(*_SIDES, (_TRIALS, 2)) * (window.height, window.width)
    starts = (window.top, window.left) + rng.random((_TRIALS, 2)) * ((window.height, window.width) - sides)
    aspects = sides[:, 1] / sides[:, 0]
    return np.concatenate((starts, sides), axis=1)[(aspects >= _ASPECTS[0]) & (aspects <= _ASPECTS[1])]


def _keep_an_object(cuts: NDArray[np.float64], boxes: NDArray[np.float64], overlap: float) -> NDArray[np.bool_]:
    """[T]: whether some box [G, 4] overlaps the cut well enough, its centre inside; all do where there is no box."""
    if not len(boxes):
        return np.ones(len(cuts), dtype=np.bool_)
    starts, ends = cuts[:, None, 1::-1], cuts[:, None, 1::-1] + cuts[:, None, 3:1:-1]  # [T, 1, 2] x, y
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres > starts) & (centres < ends)).all(axis=-1)
    # IoU of each cut with each box.
    common = (np.minimum(boxes[:, 2:], ends) - np.maximum(boxes[:, :2], starts)).clip(min=0.0).prod(axis=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
    iou = common / (areas + cuts[:, 2:].prod(axis=-1)[:, None] - common)
    fits: NDArray[np.bool_] = (inside & (iou >= overlap)).any(axis=-1)
    return fits


def framed(
    scene: Scene,
    window: Window,
    size: tuple[int, int],
    rule: Framing,
    *,
    letterboxed: bool = False,
    recolor: Callable[[Tensor], Tensor] = lambda pixels: pixels,
    keypoint_offset: float = 0.5,
    resize: ResizeRule = "float",
) -> Scene:
    """A window of the scene as a picture of its own.

    Args:
        size: (height, width) of the result, pixels.
        letterboxed: the window keeps its aspect and lies in the middle of the result, with canvas around it.
        recolor: [3, h, w] uint8 -> the same; of what is seen of the picture, and not of the canvas.
        keypoint_offset: see `keypoints.pixel_offset`.
    """
    inner, (top, left) = size, (0, 0)
    if letterboxed:
        inner, (top, left) = letterbox((max(1, round(window.height)), max(1, round(window.width))), size)
    # The picture, resized, and the window, both in whole pixels of the result.
    down, across = inner[0] / window.height, inner[1] / window.width
    whole = (max(1, round(scene.size[0] * down)), max(1, round(scene.size[1] * across)))
    starts = (round(window.top * down), round(window.left * across))
    rows, columns = (_seen(*axis) for axis in zip(starts, inner, whole, strict=True))
    if not (rows and columns):
        return on_canvas(Scene(scene.pixels[:, :0, :0], ()), size, rule.canvas_color)
    kept = Scene(scene.pixels, tuple(item for item in scene.objects if item.crowd or _has_centre_in(item, window)))
    where = Placement(whole, rows[0], columns[0], (len(rows), len(columns)))
    seen = placed(kept, where, resize=resize, keypoint_offset=keypoint_offset, min_pixels=rule.min_pixels)
    seen = replace(seen, pixels=recolor(seen.pixels))
    if seen.size == size:
        return seen
    top, left = top + rows[0] - starts[0], left + columns[0] - starts[1]
    return on_canvas(seen, size, rule.canvas_color, top=top, left=left)


def _seen(start: int, length: int, whole: int) -> range:
    """Rows of the resized picture that lie among the `length` rows from `start`."""
    return range(max(start, 0), max(min(start + length, whole), 0))


def _has_centre_in(item: CocoObject, window: Window) -> bool:
    x, y = (item.box[0] + item.box[2]) / 2 - window.left, (item.box[1] + item.box[3]) / 2 - window.top
    return 0.0 < x < window.width and 0.0 < y < window.height
