"""The pictures of a gallery: a part of the image around the object, once with the ground truth and once with what was
found, small enough to lie in the page."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_core.drawing.objects import (
    DrawnObject,
    Pixels,
    draw_objects,
    objects_from_annotations,
    objects_from_record,
)
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.report.content import Panel

_CONTEXT = 2.6  # side of the part shown, in sides of the object
_LEAST_SIDE = 72  # of the part shown, image pixels: a tiny object needs surroundings to be recognised
_QUALITY = 80
_MOST_NAMED = 6

Window = tuple[int, int, int, int]
_Box = tuple[float, float, float, float]


def window_around(box: _Box | None, height: int, width: int) -> Window:
    """Left, top, right, bottom of the part of an image to show around a box, whole pixels inside the image.

    Args:
        box: x, y, width, height; None = the whole image.
        height, width: of the image.
    """
    if box is None:
        return 0, 0, width, height
    x, y, w, h = box
    side = max(_CONTEXT * max(w, h), _LEAST_SIDE)
    across, down = min(round(side), width), min(round(side), height)
    left = min(max(round(x + w / 2 - across / 2), 0), width - across)
    top = min(max(round(y + h / 2 - down / 2), 0), height - down)
    return left, top, left + across, top + down


def example_panels(
    image: Pixels,
    record: ImageRecord,
    annotations: Sequence[Mapping[str, Any]] | None,
    categories: Mapping[int, str],
    box: _Box | None,
    *,
    min_score: float,
    side: int,
) -> tuple[Panel, ...]:
    """Ground truth beside prediction; without ground truth, the plain image beside the prediction.

    Args:
        image: [H, W, 3] uint8, of the record's size.
        record: the detections in it.
        annotations: of the image; None where there is no ground truth.
        categories: names by id.
        box: the object in question, x, y, width, height; None = the whole image.
        min_score: weaker detections are not drawn.
        side: longest side of a picture, pixels.
    """
    height, width = image.shape[:2]
    window = window_around(box, height, width)
    left, top, right, bottom = window
    part = np.ascontiguousarray(image[top:bottom, left:right])
    scale = side / max(part.shape[:2])
    if box is None:
        scale = min(scale, 1.0) if max(part.shape[:2]) > side / 2 else scale
    predicted = _detections_in(record, window, min_score)
    first = [] if annotations is None else _annotations_in(annotations, categories, window, height, width)
    headings = ("image" if annotations is None else "ground truth", "prediction")
    focus = None if box is None else _focus(box, window)
    # Names of a crowd would hide the picture, and where there is one category they say nothing.
    named = box is not None and len(categories) > 1
    return tuple(
        _panel(heading, draw_objects(part, objects, scale=scale, labels=named and len(objects) <= _MOST_NAMED), focus)
        for heading, objects in zip(headings, (first, predicted), strict=True)
    )


def _detections_in(record: ImageRecord, window: Window, min_score: float) -> list[DrawnObject]:
    inside = [one for one in record.detections if one.score >= min_score and _meets(one.bbox, window)]
    # One at a time: a mask over the whole image for each object of a large one would be a lot of memory.
    return [
        _shifted(drawn, window) for one in inside for drawn in objects_from_record(replace(record, detections=(one,)))
    ]


def _annotations_in(
    annotations: Sequence[Mapping[str, Any]], categories: Mapping[int, str], window: Window, height: int, width: int
) -> list[DrawnObject]:
    return [
        _shifted(drawn, window)
        for entry in annotations
        if _meets(entry["bbox"], window)
        for drawn in objects_from_annotations([entry], categories, height, width)
    ]


def _meets(bbox: Sequence[float], window: Window) -> bool:
    x, y, w, h = bbox
    return x < window[2] and y < window[3] and x + w > window[0] and y + h > window[1]


def _shifted(drawn: DrawnObject, window: Window) -> DrawnObject:
    """The object in the window's own frame."""
    left, top, right, bottom = window
    x1, y1, x2, y2 = drawn.box
    mask, keypoints = drawn.mask, drawn.keypoints
    return replace(
        drawn,
        box=(x1 - left, y1 - top, x2 - left, y2 - top),
        mask=None if mask is None else mask[top:bottom, left:right].copy(),
        keypoints=None if keypoints is None else keypoints - (left, top, 0.0),
    )


def _focus(box: _Box, window: Window) -> _Box:
    x, y, w, h = box
    left, top, right, bottom = window
    x1, y1 = max((x - left) / (right - left), 0.0), max((y - top) / (bottom - top), 0.0)
    x2, y2 = min((x + w - left) / (right - left), 1.0), min((y + h - top) / (bottom - top), 1.0)
    return x1, y1, max(x2 - x1, 0.0), max(y2 - y1, 0.0)


def _panel(heading: str, pixels: Pixels, focus: _Box | None) -> Panel:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="WEBP", quality=_QUALITY, method=4)
    return Panel(heading, stream.getvalue(), pixels.shape[1], pixels.shape[0], focus)
