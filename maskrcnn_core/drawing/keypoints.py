"""Keypoints on a picture: a disc for each, and the limbs of a person between them."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from maskrcnn_core.config.person import PERSON_SKELETON

Color = tuple[int, int, int]

DOUBTFUL = 0.05
"""A keypoint that is less probable is drawn as a ring and without limbs (detectron2's limit)."""

_LEFT, _RIGHT, _MIDDLE = (70, 220, 120), (255, 150, 60), (90, 190, 255)  # limbs: the person's left, right, and between
_INK = (28, 28, 32)
_FEW_PIXELS = 2_000_000  # an overlay of up to so many is drawn three times as fine


def draw_keypoints(canvas: Image.Image, keypoints: NDArray[np.floating], *, line: int, probable: bool) -> None:
    """Draw an object's keypoints, in place; with 17 of them also a person's limbs (COCO's skeleton).

    Args:
        canvas: RGB picture.
        keypoints: [P, 3] x, y in pixels of the picture, and v.
        line: width of the picture's lines, pixels; limbs and discs grow with it.
        probable: v is the probability of a detected keypoint; all with v > 0 are drawn, the `DOUBTFUL` as rings without
            limbs. False: v is COCO's visibility; 0 is not drawn, 1 (hidden) as a ring.
    """
    shown = keypoints[:, 2] > 0
    if not shown.any():
        return
    hollow = keypoints[:, 2] < DOUBTFUL if probable else keypoints[:, 2] == 1
    joined = shown & ~hollow if probable else shown
    radius = 2.0 * line
    window = _window(keypoints[shown, :2], 2 * radius, canvas)
    if window is None:
        return
    left, top, right, bottom = window
    fine = 3 if (right - left) * (bottom - top) < _FEW_PIXELS else 1
    overlay = Image.new("RGBA", ((right - left) * fine, (bottom - top) * fine))
    draw = ImageDraw.Draw(overlay)
    points = (keypoints[:, :2] - (left, top)) * fine
    person = len(keypoints) == 17
    for first, second in ((limb[0] - 1, limb[1] - 1) for limb in PERSON_SKELETON if person):
        if joined[first] and joined[second]:
            ends = (*points[first].tolist(), *points[second].tolist())
            draw.line(ends, fill=(*_limb_color(first, second), 255), width=round(1.5 * line * fine))
    for index in np.flatnonzero(shown).tolist():
        x, y = points[index].tolist()
        color, ink = (*(_limb_color(index, index) if person else _MIDDLE), 255), (*_INK, 255)
        reach, width = radius * fine, max(1, round(0.6 * line * fine))
        fill, outline = (ink, color) if hollow[index] else (color, ink)
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill, outline=outline, width=width)
    # Premultiplied while it is reduced: transparent pixels must not darken the edges.
    overlay = overlay.convert("RGBa").reduce(fine).convert("RGBA") if fine > 1 else overlay
    canvas.paste(overlay, (left, top), overlay)


def _window(points: NDArray[np.floating], margin: float, canvas: Image.Image) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of the part of the picture that the points with a margin cover; None outside it."""
    left, top = (max(int(value), 0) for value in np.floor(points.min(axis=0) - margin))
    right, bottom = np.ceil(points.max(axis=0) + margin).astype(int).tolist()
    right, bottom = min(right, canvas.width), min(bottom, canvas.height)
    return None if left >= right or top >= bottom else (left, top, right, bottom)


def _limb_color(first: int, second: int) -> Color:
    """COCO's keypoints after the nose alternate left (odd) and right (even)."""
    if first == 0 and second == 0:
        return _MIDDLE
    sides = {index % 2 for index in (first, second) if index > 0}
    if len(sides) == 2:
        return _MIDDLE
    return _LEFT if sides == {1} else _RIGHT
