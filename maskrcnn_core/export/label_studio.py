"""Label Studio's import JSON: a task for each image, with the objects as its predictions; and the labelling interface.

Format: labelstud.io/guide/predictions and guide/task_format. Places are percent of the image's size. A mask is a brush
region (`format: rle`), packed as `rle_brush` says, or a polygon with `ExportStyle.polygons`; an object without one is a
rectangle. Keypoints are regions of their own, with their object as `parentID`.
"""

import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from xml.sax.saxutils import quoteattr

from maskrcnn_core.export.brush import rle_brush
from maskrcnn_core.export.coco import to_json
from maskrcnn_core.export.formats import ExportFormat, Written
from maskrcnn_core.export.polygons import mask_polygon
from maskrcnn_core.export.safe_names import address
from maskrcnn_core.export.source import (
    ExportFile,
    ExportImage,
    ExportStyle,
    LabelledImage,
    LabelSource,
    Listed,
    Once,
    Survey,
    is_empty,
    keypoint_names,
    labelled_keypoints,
    mask_of,
)
from maskrcnn_core.records.detections import DetectionRecord


@dataclass(frozen=True)
class Controls:
    """The tags of a labelling interface that regions refer to.

    Attributes:
        names: of the tags, by kind of region.
        image: name of the image's tag.
    """

    names: Mapping[str, str]
    image: str


EXPORTED = Controls(
    {"brushlabels": "masks", "polygonlabels": "polygons", "rectanglelabels": "boxes", "keypointlabels": "keypoints"},
    "image",
)
"""Those of the interface that is written beside the tasks."""
_TAGS = {
    "brushlabels": "BrushLabels",
    "polygonlabels": "PolygonLabels",
    "rectanglelabels": "RectangleLabels",
    "keypointlabels": "KeyPointLabels",
}
_KEYPOINT_WIDTH = 0.5  # percent of the image


def label_studio_files(source: LabelSource, style: ExportStyle) -> Iterator[ExportFile]:
    """The tasks, and beside them the labelling interface that the project needs."""
    yield ExportFile("", _tasks(source, style))
    yield ExportFile(".interface.xml", iter([Once(_interface(source.survey, style))]))


def _tasks(source: LabelSource, style: ExportStyle) -> Iterator[Once | Listed]:
    yield Once("[")
    names = source.survey.shown_names
    for labelled in source.labelled():
        yield Listed(to_json(_task(labelled, source.survey.model, style, names)))
    yield Once("\n]\n")


def _task(labelled: LabelledImage, model: str, style: ExportStyle, names: Mapping[int, str]) -> dict[str, Any]:
    image = labelled.image
    uri = image.uri if style.image_prefix is None else address(style.image_prefix, image.name)
    objects = [detection for detection in labelled.objects if not is_empty(detection, image)]
    regions = [
        region
        for number, detection in enumerate(objects, 1)
        for region in object_regions(
            replace(detection, category=names[detection.category_id]), image, f"object{number}", style
        )
    ]
    prediction: dict[str, Any] = {"model_version": model, "result": regions}
    if objects:
        # The weakest object decides how soon an image is looked at, where tasks are ordered by score.
        prediction["score"] = min(detection.score for detection in objects)
    return {"data": {"image": uri, "image_id": image.image_id}, "predictions": [prediction]}


def object_regions(
    detection: DetectionRecord, image: ExportImage, name: str, style: ExportStyle, controls: Controls = EXPORTED
) -> Iterator[dict[str, Any]]:
    """An object's mask, polygon or box, and its keypoints.

    Args:
        detection: its category is the label.
        image: that it is in.
        name: of its regions within the task.
        style: polygons or masks.
        controls: those of the project.

    Raises:
        StorageError: malformed run lengths.
    """
    mask = mask_of(detection, image)
    if mask is None:
        x, y, w, h = detection.bbox
        spans = {"x": x, "width": w}, {"y": y, "height": h}
        value = _percent(spans[0], image.width) | _percent(spans[1], image.height) | {"rotation": 0}
        yield _region("rectanglelabels", detection.category, value, image, name, detection.score, controls)
    elif style.polygons:
        points = mask_polygon(mask, style.tolerance) * (100 / image.width, 100 / image.height)
        value = {"points": points.round(4).tolist(), "closed": True}
        yield _region("polygonlabels", detection.category, value, image, name, detection.score, controls)
    else:
        value = {"format": "rle", "rle": rle_brush(mask, image.height, image.width)}
        yield _region("brushlabels", detection.category, value, image, name, detection.score, controls)
    if detection.keypoints is not None:
        yield from _keypoints(detection.keypoints, image, name, style, controls)


def _keypoints(
    keypoints: tuple[float, ...], image: ExportImage, parent: str, style: ExportStyle, controls: Controls
) -> Iterator[dict[str, Any]]:
    flat = labelled_keypoints(keypoints, style.min_keypoint_score)
    names = keypoint_names(len(flat) // 3)
    for index, (x, y, v) in enumerate(zip(flat[::3], flat[1::3], flat[2::3], strict=True)):
        if v:
            value = _percent({"x": x + 0.5}, image.width) | _percent({"y": y + 0.5}, image.height)
            value["width"] = _KEYPOINT_WIDTH
            name, score = f"{parent}-{names[index]}", keypoints[3 * index + 2]
            region = _region("keypointlabels", names[index], value, image, name, score, controls)
            yield region | {"parentID": parent}


def _percent(values: dict[str, float], size: int) -> dict[str, Any]:
    return {name: round(100 * value / size, 4) for name, value in values.items()}


def _region(
    kind: str, label: str, value: dict[str, Any], image: ExportImage, name: str, score: float, controls: Controls
) -> dict[str, Any]:
    return {
        "id": name,
        "type": kind,
        "from_name": controls.names[kind],
        "to_name": controls.image,
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "score": score,
        "value": value | {kind: [label]},
    }


def _interface(survey: Survey, style: ExportStyle) -> str:
    """The project's labelling interface: every kind of region that tasks can hold, with its labels."""
    categories = survey.shown_names.values()
    counts = sorted(set(survey.num_keypoints.values()))
    keypoints = list(dict.fromkeys(name for count in counts for name in keypoint_names(count)))
    lines = ["<View>", f'  <Image name="{EXPORTED.image}" value="$image" zoom="true"/>']
    unused = "brushlabels" if style.polygons else "polygonlabels"
    for kind, tag in _TAGS.items():
        if kind == unused:
            continue
        labels: Collection[str] = keypoints if kind == "keypointlabels" else categories
        if labels:
            lines.append(f'  <{tag} name="{EXPORTED.names[kind]}" toName="{EXPORTED.image}">')
            lines += [f"    <Label value={quoteattr(label)}/>" for label in labels]
            lines.append(f"  </{tag}>")
    return "\n".join([*lines, "</View>", ""])


def _use(written: Written) -> str:
    tasks, interface = map(shlex.quote, written.files)
    return f"paste {interface} as the labelling interface, then import {tasks}"


FORMAT = ExportFormat(label_studio_files, _use)
