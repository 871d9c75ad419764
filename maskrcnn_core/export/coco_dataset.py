"""COCO's data set JSON: images, annotations and categories, as annotation tools import it and training reads it.

Format: cocodataset.org/#format-data. An annotation has a `score` beside COCO's fields, which readers pass over. Masks
are compressed run lengths, or one polygon with `ExportStyle.polygons`. File names are relative to the folder of all
images, which `info.image_root` names.
"""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from maskrcnn_core.config.model import Category
from maskrcnn_core.config.person import PERSON_SKELETON
from maskrcnn_core.export.coco import to_json
from maskrcnn_core.export.formats import ExportFormat, Written
from maskrcnn_core.export.polygons import mask_polygon
from maskrcnn_core.export.source import (
    ExportFile,
    ExportImage,
    ExportStyle,
    LabelSource,
    Listed,
    Once,
    is_empty,
    keypoint_names,
    labelled_keypoints,
    mask_area,
    mask_of,
)
from maskrcnn_core.records.detections import DetectionRecord

_COCO_PERSON_KEYPOINTS = 17


def coco_dataset_files(source: LabelSource, style: ExportStyle) -> Iterator[ExportFile]:
    """One file with the three sections; annotation ids count from 1."""
    yield ExportFile("", dataset_pieces(source, style))


def dataset_pieces(
    source: LabelSource, style: ExportStyle, names: Mapping[int, str] | None = None
) -> Iterator[Once | Listed]:
    """The text of the file.

    Args:
        source, style: what is exported, and how.
        names: what to call the categories, by id; None = as the labels do.
    """
    survey = source.survey
    info = {"description": "labels of maskrcnn-ray", "model": survey.model, "image_root": survey.root}
    named = [Category(one.id, (names or {}).get(one.id, one.name)) for one in survey.categories]
    categories = [_category(category, survey.num_keypoints.get(category.id, 0)) for category in named]
    head = f'{{"info":{to_json(info)},\n"licenses":[],\n"categories":{to_json(categories)},\n"images":['
    yield Once(head)
    yield from (Listed(to_json(_image(image))) for image in source.images())
    yield Once('],\n"annotations":[')
    yield from (Listed(to_json(annotation), numbered=True) for annotation in _annotations(source, style))
    yield Once("]}\n")


def _category(category: Category, num_keypoints: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": category.id, "name": category.name, "supercategory": ""}
    if num_keypoints:
        limbs = PERSON_SKELETON if num_keypoints == _COCO_PERSON_KEYPOINTS else ()
        entry |= {"keypoints": keypoint_names(num_keypoints), "skeleton": [list(limb) for limb in limbs]}
    return entry


def _image(image: ExportImage) -> dict[str, Any]:
    return {"id": image.image_id, "file_name": image.name, "width": image.width, "height": image.height}


def _annotations(source: LabelSource, style: ExportStyle) -> Iterator[dict[str, Any]]:
    for labelled in source.labelled():
        for detection in labelled.objects:
            if not is_empty(detection, labelled.image):
                yield _annotation(detection, labelled.image, style)


def _annotation(detection: DetectionRecord, image: ExportImage, style: ExportStyle) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "image_id": image.image_id,
        "category_id": detection.category_id,
        "iscrowd": 0,
        "score": detection.score,
        "bbox": list(detection.bbox),
        "area": detection.bbox[2] * detection.bbox[3],
    }
    if detection.rle_counts is not None:
        segmentation = {"size": [image.height, image.width], "counts": detection.rle_counts}
        entry["area"] = mask_area(detection, image)
        mask = mask_of(detection, image) if style.polygons else None
        if mask is None:
            entry["segmentation"] = segmentation
        else:
            entry["segmentation"] = [np.round(mask_polygon(mask, style.tolerance), 2).ravel().tolist()]
    if detection.keypoints is not None:
        keypoints = labelled_keypoints(detection.keypoints, style.min_keypoint_score)
        entry |= {"keypoints": keypoints, "num_keypoints": sum(v > 0 for v in keypoints[2::3])}
    return entry


def _use(written: Written) -> str:
    (file,) = written.files
    return (
        "any tool that reads COCO instances; python -m jobs.train --config jobs/configs/mask_rcnn_lite0_fpn.yaml "
        f"--data.train.annotations {shlex.quote(file)} --data.train.images {shlex.quote(written.images)} "
        "--output runs/corrected"
    )


FORMAT = ExportFormat(coco_dataset_files, _use, draws="outlines")
