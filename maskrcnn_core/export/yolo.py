"""YOLO's segmentation text: a folder with a .txt for each image with one object a line, and data.yaml.

Format: docs.ultralytics.com/datasets/segment: `class x1 y1 x2 y2 ...`, the class's index in data.yaml and a polygon as
shares of the image's width and height; an object without a mask is `class x y width height` with the box's middle
(docs.ultralytics.com/datasets/detect). An image without objects has an empty file. Ultralytics looks for the label of
images/NAME.jpg at labels/NAME.txt, so that the images belong into images/ of the export, by the names in images.txt.
"""

import posixpath
import shlex
from collections.abc import Iterator

import yaml

from maskrcnn_core.export.formats import ExportFormat, Written
from maskrcnn_core.export.polygons import mask_polygon
from maskrcnn_core.export.source import (
    ExportFile,
    ExportImage,
    ExportStyle,
    LabelledImage,
    LabelSource,
    Once,
    Survey,
    is_empty,
    mask_of,
)
from maskrcnn_core.records.detections import DetectionRecord

_IMAGES = "images"


def yolo_files(source: LabelSource, style: ExportStyle) -> Iterator[ExportFile]:
    """labels/*.txt, images.txt, data.yaml; a folder."""
    classes = {category.id: index for index, category in enumerate(source.survey.categories)}
    for labelled in source.labelled():
        name = posixpath.splitext(labelled.image.path)[0]
        yield ExportFile(f"labels/{name}.txt", iter([_label_text(labelled, classes, style)]), of_image=True)
    yield ExportFile("images.txt", (f"./{_IMAGES}/{image.path}\n" for image in source.images()))
    yield ExportFile("data.yaml", iter([Once(_data(source.survey))]))


def _data(survey: Survey) -> str:
    """Without `path`, the folder of data.yaml itself is meant. Training needs a val: the user's own, or the same."""
    names = dict(enumerate(survey.shown_names.values()))
    content = {"train": "images.txt", "val": "images.txt", "names": names}
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False)


def _label_text(labelled: LabelledImage, classes: dict[int, int], style: ExportStyle) -> str:
    lines = [
        f"{classes[detection.category_id]} {_coordinates(detection, labelled.image, style)}\n"
        for detection in labelled.objects
        if not is_empty(detection, labelled.image)
    ]
    return "".join(lines)


def _coordinates(detection: DetectionRecord, image: ExportImage, style: ExportStyle) -> str:
    mask = mask_of(detection, image)
    if mask is None:
        x, y, w, h = detection.bbox
        values = [(x + w / 2) / image.width, (y + h / 2) / image.height, w / image.width, h / image.height]
    else:
        values = (mask_polygon(mask, style.tolerance) / (image.width, image.height)).ravel().tolist()
    return " ".join(f"{min(max(value, 0.0), 1.0):.6f}" for value in values)


def _use(written: Written) -> str:
    folder = shlex.quote(written.files[0])
    train = f"yolo segment train data={folder}/data.yaml"
    return train if written.has_images else f"put or link the images into {folder}/{_IMAGES}; {train}"


FORMAT = ExportFormat(yolo_files, _use, is_folder=True, image_folder=_IMAGES)
