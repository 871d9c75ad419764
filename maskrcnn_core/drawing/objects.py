"""Boxes, masks, labels and keypoints on a picture.

Line widths and letters grow with the picture. A category has the same colour in every picture.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from maskrcnn_core.data.segmentation import rasterise
from maskrcnn_core.drawing.keypoints import draw_keypoints
from maskrcnn_core.drawing.lettering import fitting, font_of
from maskrcnn_core.records.labels import ImageRecord

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

_FILL = 0.42  # opacity of a mask
_PAPER, _INK, _FAINT = (250, 250, 250), (28, 28, 32), (120, 120, 128)


@dataclass(frozen=True, eq=False)
class DrawnObject:
    """One object to draw.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the picture.
        category: name for the label.
        category_id: chooses the colour.
        score: shown in the label; None for ground truth.
        mask: [H, W] bool over the whole picture, or None.
        keypoints: [P, 3] x, y, v as in the label record (v a probability) where there is a score, else as in COCO's
            annotations (v = 0, 1 or 2); or None. See `draw_keypoints`.
        crowd: a region of many objects: hatched, with a dashed box.
    """

    box: tuple[float, float, float, float]
    category: str
    category_id: int
    score: float | None = None
    mask: NDArray[np.bool_] | None = None
    keypoints: NDArray[np.floating] | None = None
    crowd: bool = False


@dataclass(frozen=True)
class _Style:
    """Sizes that depend on the picture, pixels."""

    line: int
    letters: int


def objects_from_record(record: ImageRecord, *, min_score: float = 0.0) -> list[DrawnObject]:
    """What a label record holds, ready to draw, best first.

    Args:
        record: a failed image has nothing to draw.
        min_score: weaker detections are left out.
    """
    objects = []
    for detection in record.detections:
        if detection.score < min_score:
            continue
        mask = None
        if detection.rle_counts is not None:
            size = record.height or 0, record.width or 0  # an image with detections has a size
            mask = rasterise({"size": list(size), "counts": detection.rle_counts}, *size)
        keypoints = _points(detection.keypoints)
        objects.append(
            DrawnObject(
                _corners(detection.bbox), detection.category, detection.category_id, detection.score, mask, keypoints
            )
        )
    return objects


def objects_from_annotations(
    annotations: Sequence[Mapping[str, Any]], categories: Mapping[int, str], height: int, width: int
) -> list[DrawnObject]:
    """COCO annotation objects of one image, ready to draw.

    Args:
        annotations: clean entries (`data.coco_annotations`): `category_id` and `bbox`; `segmentation`, `keypoints`,
            `iscrowd` where there are any.
        categories: name of each category id; an unknown id is shown as its number.
        height, width: of the image, pixels.

    Raises:
        ValueError: malformed run lengths.
    """
    objects = []
    for entry in annotations:
        segmentation = entry.get("segmentation")
        category_id = int(entry["category_id"])
        objects.append(
            DrawnObject(
                box=_corners(entry["bbox"]),
                category=categories.get(category_id, str(category_id)),
                category_id=category_id,
                mask=rasterise(segmentation, height, width) if segmentation else None,
                keypoints=_points(entry.get("keypoints")),
                crowd=bool(entry.get("iscrowd", 0)),
            )
        )
    return objects


def _corners(bbox: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = bbox
    return x, y, x + width, y + height


def _points(flat: Sequence[float] | None) -> NDArray[np.floating] | None:
    return np.asarray(flat, dtype=np.float64).reshape(-1, 3) if flat else None


def category_color(category_id: int) -> Color:
    """RGB 0..255 of a category, the same everywhere. Steps of the golden ratio keep the hues of near ids far apart."""
    hue = (0.952 + category_id * 0.6180339887) % 1.0
    lightness = (0.58, 0.52, 0.66)[category_id % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.92)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_objects(image: Pixels, objects: Sequence[DrawnObject], *, scale: float = 1.0, labels: bool = True) -> Pixels:
    """A copy of the picture with the objects on it.

    A label that would hide one of a higher score, or is more than twice as large as its box, is left out; the box and
    the mask are always drawn.

    Args:
        image: [H, W, 3] uint8 RGB.
        objects: in pixels of `image`.
        scale: enlarges the picture before drawing, so that lines and letters stay fine on a small one.
        labels: write category and score.

    Returns:
        [round(H * scale), round(W * scale), 3] uint8.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"picture to draw on: got {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
    if scale != 1.0:
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        objects = [_resized(drawn, scale, size) for drawn in objects]
    side = float(np.sqrt(image.shape[0] * image.shape[1]))
    style = _Style(line=max(1, round(side / 320)), letters=max(10, round(side / 42)))
    pixels = image.copy()
    by_area = sorted(objects, key=_box_area, reverse=True)
    for drawn in by_area:
        if drawn.mask is not None:
            _blend_mask(pixels, drawn, style)
    canvas = Image.fromarray(pixels)
    for drawn in by_area:
        _draw_box(canvas, drawn, style)
    for drawn in by_area:
        if drawn.keypoints is not None:
            draw_keypoints(canvas, drawn.keypoints, line=style.line, probable=drawn.score is not None)
    if labels:
        _draw_labels(canvas, objects, style)
    return np.asarray(canvas)


def _box_area(drawn: DrawnObject) -> float:
    x1, y1, x2, y2 = drawn.box
    return (x2 - x1) * (y2 - y1)


def _resized(drawn: DrawnObject, scale: float, size: tuple[int, int]) -> DrawnObject:
    x1, y1, x2, y2 = drawn.box
    mask, keypoints = drawn.mask, drawn.keypoints
    if mask is not None:
        mask = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) >= 128
    if keypoints is not None:
        keypoints = keypoints * (scale, scale, 1.0)
    return replace(drawn, box=(x1 * scale, y1 * scale, x2 * scale, y2 * scale), mask=mask, keypoints=keypoints)


def _blend_mask(pixels: Pixels, drawn: DrawnObject, style: _Style) -> None:
    """Tint the mask's pixels and trace its edge, in place."""
    assert drawn.mask is not None
    if drawn.mask.shape != pixels.shape[:2]:
        raise ValueError(f"mask of size {list(drawn.mask.shape)} on a picture of size {list(pixels.shape[:2])}")
    rows, columns = np.flatnonzero(drawn.mask.any(axis=1)), np.flatnonzero(drawn.mask.any(axis=0))
    if len(rows) == 0:
        return
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    mask = drawn.mask[window]
    tinted = mask
    if drawn.crowd:
        row, column = np.ogrid[: mask.shape[0], : mask.shape[1]]
        tinted = mask & ((row + column) // (3 * style.line + 1) % 2 == 0)
    color = np.asarray(category_color(drawn.category_id), dtype=np.float32)
    view = pixels[window]
    view[tinted] = (view[tinted] * (1 - _FILL) + color * _FILL).astype(np.uint8)
    view[_edge(mask, style.line)] = color.astype(np.uint8)


def _edge(mask: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """The mask's outermost pixels, `thickness` deep."""
    padded = Image.fromarray(np.pad(mask, thickness).astype(np.uint8) * 255)
    eroded = np.asarray(padded.filter(ImageFilter.MinFilter(2 * thickness + 1))) > 0
    return np.asarray(mask & ~eroded[thickness:-thickness, thickness:-thickness])


def _draw_box(canvas: Image.Image, drawn: DrawnObject, style: _Style) -> None:
    draw, color = ImageDraw.Draw(canvas), category_color(drawn.category_id)
    x1, y1, x2, y2 = (round(value) for value in drawn.box)
    x1, y1 = min(max(x1, 0), canvas.width - 1), min(max(y1, 0), canvas.height - 1)
    x2, y2 = max(min(x2, canvas.width) - 1, x1), max(min(y2, canvas.height) - 1, y1)
    dash = 4 * style.line + 2 if drawn.crowd else canvas.width + canvas.height
    for x in range(x1, x2 + 1, 2 * dash):
        for y in (y1, max(y1, y2 - style.line + 1)):
            draw.rectangle((x, y, min(x + dash, x2), min(y + style.line - 1, y2)), fill=color)
    for y in range(y1, y2 + 1, 2 * dash):
        for x in (x1, max(x1, x2 - style.line + 1)):
            draw.rectangle((x, y, min(x + style.line - 1, x2), min(y + dash, y2)), fill=color)


def _draw_labels(canvas: Image.Image, objects: Sequence[DrawnObject], style: _Style) -> None:
    font = font_of(style.letters)
    pad = max(2, style.letters // 5)
    ascent, descent = font.getmetrics()
    height = ascent + descent + pad
    if height > canvas.height:
        return
    draw = ImageDraw.Draw(canvas)
    placed: list[Rectangle] = []
    for drawn in sorted(objects, key=lambda drawn: -1.0 if drawn.score is None else -drawn.score):
        text = fitting(_label(drawn), font, canvas.width - 2 * pad)
        if not text:
            continue
        width = min(int(np.ceil(font.getlength(text))) + 2 * pad, canvas.width)
        if width * height > 2 * _box_area(drawn):
            continue
        rectangle = _label_rectangle(drawn, (width, height), (canvas.width, canvas.height), placed)
        if rectangle is None:
            continue
        placed.append(rectangle)
        color = category_color(drawn.category_id)
        draw.rectangle((rectangle[0], rectangle[1], rectangle[2] - 1, rectangle[3] - 1), fill=color)
        bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        draw.text(
            (rectangle[0] + pad, rectangle[1] + pad // 2), text, fill=_INK if bright else (255, 255, 255), font=font
        )


def _label(drawn: DrawnObject) -> str:
    if drawn.crowd:
        return f"{drawn.category} (crowd)"
    return drawn.category if drawn.score is None else f"{drawn.category} {drawn.score:.2f}"


def _label_rectangle(
    drawn: DrawnObject, label: tuple[int, int], picture: tuple[int, int], placed: Sequence[Rectangle]
) -> Rectangle | None:
    """Where the label hides the least of other labels: above the box, inside its top, below it; always in the picture.

    Args:
        label, picture: (width, height), pixels; the label fits into the picture.

    Returns:
        None where it would hide more than a quarter of a label's size everywhere.
    """
    x1, y1, x2, y2 = (round(value) for value in drawn.box)
    width, height = label
    best, least = None, 0.25 * width * height
    for x, y in ((x1, y1 - height), (x2 - width, y1 - height), (x1, y1), (x1, y2), (x1, y2 - height)):
        left, top = min(max(x, 0), picture[0] - width), min(max(y, 0), picture[1] - height)
        rectangle = left, top, left + width, top + height
        hidden = float(sum(_shared_area(rectangle, other) for other in placed))
        if hidden == 0:
            return rectangle
        if hidden < least:
            best, least = rectangle, hidden
    return best


def _shared_area(first: Rectangle, second: Rectangle) -> int:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


def fit_scale(image: Pixels, side: int) -> float:
    """The `scale` for `draw_objects` that makes the picture's longer side `side` pixels long."""
    return side / float(max(image.shape[:2]))
