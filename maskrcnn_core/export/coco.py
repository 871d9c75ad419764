"""COCO's results JSON: a list of all detections, as COCO's evaluation reads it.

Format: cocodataset.org/#format-results. Boxes, masks and keypoints of a detection stand in one entry; pycocotools'
`loadRes` takes such a file for boxes first, so that the areas it files masks under are the boxes'.
"""

import json
import shlex
from collections.abc import Iterator
from typing import Any

from maskrcnn_core.export.formats import ExportFormat, Written
from maskrcnn_core.export.source import ExportFile, ExportStyle, LabelSource, Listed, Once
from maskrcnn_core.records.detections import DetectionRecord


def coco_files(source: LabelSource, style: ExportStyle) -> Iterator[ExportFile]:
    """One file with every detection in full precision."""
    del style  # the format leaves no choice
    yield ExportFile("", _results(source))


def _results(source: LabelSource) -> Iterator[Once | Listed]:
    yield Once("[")
    for labelled in source.labelled():
        for detection in labelled.objects:
            image = labelled.image
            yield Listed(to_json(coco_result(detection, image.image_id, (image.height, image.width))))
    yield Once("\n]\n")


def coco_result(detection: DetectionRecord, image_id: int, size: tuple[int | None, int | None]) -> dict[str, Any]:
    """A detection in COCO's results format: box, mask and keypoints in one entry.

    Args:
        detection: in pixels of the image.
        image_id: of the image.
        size: its (height, width).
    """
    result: dict[str, Any] = {
        "image_id": image_id,
        "category_id": detection.category_id,
        "score": detection.score,
        "bbox": list(detection.bbox),
    }
    if detection.rle_counts is not None:
        result["segmentation"] = {"size": list(size), "counts": detection.rle_counts}
    if detection.keypoints is not None:
        result["keypoints"] = list(detection.keypoints)
    return result


def to_json(content: object) -> str:
    """Compact JSON with letters of all scripts as they are."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _use(written: Written) -> str:
    (file,) = written.files
    return (
        f"python -m jobs.evaluate --labels {shlex.quote(file)} --annotations ANNOTATIONS.json; in pycocotools "
        f"COCO('ANNOTATIONS.json').loadRes({file!r}). Both file a mask as small, medium or large by the box beside it: "
        "APs, APm and APl are others than those of the labels themselves"
    )


FORMAT = ExportFormat(coco_files, _use, keeps_empty=True, draws="never")
