"""A record as Label Studio's prediction, in the terms of a project: its tags, its labels, nothing that it lacks."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from maskrcnn_core.export.label_studio import object_regions
from maskrcnn_core.export.source import ExportImage, ExportStyle, is_empty
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord
from pipelines.serving.label_studio.interface import LabellingInterface


def prediction(record: ImageRecord, model: str, interface: LabellingInterface, min_score: float) -> dict[str, Any]:
    """Of an image that was looked at.

    An object is a brush region where the project takes those, else a polygon, else a rectangle. What has no label in
    the project is left out.

    Args:
        record: of the image, with status `ok`.
        model: fingerprint of what made it.
        interface: of the project.
        min_score: weaker objects are left out.
    """
    image = ExportImage(0, "", "", record.width or 0, record.height or 0)
    kind = _kind(interface)
    shown = [
        one
        for one in record.detections
        if one.score >= min_score and interface.label(kind, one.category) and not is_empty(one, image)
    ]
    regions = [region for number, one in enumerate(shown, 1) for region in _regions(one, image, number, interface)]
    # The weakest object decides how soon a task comes up, where tasks are ordered by score.
    score = min((one.score for one in shown), default=0.0)
    return {"result": regions, "score": score, "model_version": model}


def _kind(interface: LabellingInterface) -> str:
    return next((kind for kind in ("brushlabels", "polygonlabels") if interface.takes(kind)), "rectanglelabels")


def _regions(
    detection: DetectionRecord, image: ExportImage, number: int, interface: LabellingInterface
) -> Iterator[dict[str, Any]]:
    kind = _kind(interface)
    drawn = replace(
        detection,
        category=interface.label(kind, detection.category) or "",
        rle_counts=None if kind == "rectanglelabels" else detection.rle_counts,
    )
    style = ExportStyle(polygons=kind == "polygonlabels")
    for region in object_regions(drawn, image, f"object{number}", style, interface.controls):
        region_kind = region["type"]
        # A mask that is missing becomes a rectangle, which the project may not take; nor all keypoints.
        label = interface.label(region_kind, region["value"][region_kind][0])
        if label is not None:
            region["value"][region_kind] = [label]
            yield region
