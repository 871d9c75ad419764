"""The COCO numbers of label records: precision and recall of boxes, masks and keypoints, equal to pycocotools' bit for
bit.

One scoring has three steps, so that the first can later run on shards of the images and only the second on all of them:
matching (per image and category), accumulation (precision and recall tables) and summary (12 numbers, of keypoints 10,
and AP per category).
The engine does the first two; the summary is ours, because pycocotools' own is defined for 100 detections only.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.keypoints import (
    MAX_DETECTIONS,
    keypoint_categories,
    keypoint_subset,
    reason_without_keypoints,
)
from maskrcnn_core.evaluation.results import (
    CocoDict,
    Coverage,
    IouType,
    coco_results,
    count_detections,
    count_without_mask,
    match_labels,
    unknown_categories,
)

Engine = Literal["hotcoco", "pycocotools"]
_Array = npt.NDArray[np.float64]

STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The 12 numbers in pycocotools' order. AR100 is the recall at `max_detections`, which COCO sets to 100."""

KEYPOINT_STAT_NAMES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
"""The 10 numbers of keypoints in pycocotools' order, at the best 20 detections; small persons are not annotated."""

NOT_DEFINED = -1.0
"""Value of a number that has no annotated object to be measured on."""

_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
_KEYPOINT_MEDIUM, _KEYPOINT_LARGE = 1, 2  # their scoring has no small ones
_IOU_50, _IOU_75 = 0, 5  # of the thresholds 0.50, 0.55 .. 0.95


@dataclass(frozen=True)
class CategoryScore:
    """Average precision of one category.

    Attributes:
        id, name: as in the annotation file.
        annotations: annotated objects, crowd regions not counted.
        ap: average precision over IoU (or OKS) 0.50 to 0.95 by iou type; -1 without annotated objects.
    """

    id: int
    name: str
    annotations: int
    ap: Mapping[str, float]


@dataclass(frozen=True)
class CocoScores:
    """The result of one scoring.

    Attributes:
        stats: by iou type (`bbox`, `segm`, `keypoints`) the numbers that `stat_names` names; -1 where not defined.
        per_category: every category of the annotation file, by id.
        coverage: which images were labelled.
        detections: detections on annotated images, before the limit per image and category.
        annotations: annotated objects, crowd regions not counted.
        skipped: by iou type, why it was not scored.
        unknown_categories: detections left out because the annotation file lacks their category, by its name.
    """

    stats: Mapping[str, tuple[float, ...]]
    per_category: tuple[CategoryScore, ...]
    coverage: Coverage
    detections: int
    annotations: int
    skipped: Mapping[str, str]
    unknown_categories: Mapping[str, int]


def evaluate_coco(
    annotations: CocoDict,
    labels: pa.Table,
    iou_types: Sequence[IouType] = ("bbox", "segm", "keypoints"),
    max_detections: int = 100,
    engine: Engine = "hotcoco",
    keypoint_sigmas: Sequence[float] | None = None,
) -> CocoScores:
    """Score label records against COCO annotations.

    All images of the annotation file are evaluated: one that was not labelled, or that failed, counts as an image in
    which nothing was found. Label rows of other images are left out. `coverage` counts both. Masks are scored where
    every annotation and every detection has one, keypoints where categories of the annotations list them and every
    detection of these has some; otherwise `skipped` says why not. Where neither side knows keypoints it is silent.

    Args:
        annotations: COCO instances, as read from the JSON file; not changed.
        labels: label records (`inference.records`), one row per image.
        iou_types: what to score.
        max_detections: best detections of an image and category that count, at least 10; of keypoints always 20.
        engine: `hotcoco` (compiled) or `pycocotools` (the reference); the numbers are equal.
        keypoint_sigmas: how far annotators differ in each keypoint, as a share of the object's scale; None = COCO's,
            for its 17 keypoints of a person.

    Raises:
        ConfigError: `keypoint_sigmas` of another number than the keypoints.
        AnnotationError: the annotations lack a field, or labels and annotations do not fit (`results.match_labels`).
    """
    images = check_annotations(annotations)
    rows, coverage = match_labels(labels, images)
    unknown = unknown_categories(rows, _category_ids(annotations))
    skipped = _reason_without_masks(annotations, rows) if "segm" in iou_types else {}
    scored: list[IouType] = [kind for kind in iou_types if kind not in skipped and kind != "keypoints"]
    if "keypoints" in iou_types:
        wanted, reason = reason_without_keypoints(annotations, rows, keypoint_sigmas)
        scored += ["keypoints"] if wanted else []
        skipped |= {"keypoints": reason} if reason else {}
    tables = {
        kind: _accumulate(
            keypoint_subset(annotations) if kind == "keypoints" else annotations,
            coco_results(rows, kind),
            kind,
            [MAX_DETECTIONS] if kind == "keypoints" else [1, 10, max_detections],
            engine,
            keypoint_sigmas,
        )
        for kind in scored
    }
    per_category = _category_scores(annotations, {kind: precision for kind, (precision, _) in tables.items()})
    return CocoScores(
        stats={
            kind: (summarize_keypoints if kind == "keypoints" else summarize)(precision, recall)
            for kind, (precision, recall) in tables.items()
        },
        per_category=per_category,
        coverage=coverage,
        detections=count_detections(rows),
        annotations=sum(category.annotations for category in per_category),
        skipped=skipped,
        unknown_categories=unknown,
    )


def stat_names(iou_type: str) -> tuple[str, ...]:
    """Names of the numbers in `CocoScores.stats[iou_type]`."""
    return KEYPOINT_STAT_NAMES if iou_type == "keypoints" else STAT_NAMES


def summarize(precision: _Array, recall: _Array) -> tuple[float, ...]:
    """The 12 COCO numbers.

    Args:
        precision: [10 IoU thresholds, 101 recalls, K, 4 area ranges, 3 detection limits], -1 where not defined.
        recall: [10 IoU thresholds, K, 4 area ranges, 3 detection limits], -1 where not defined.
    """
    ap = [
        _mean(precision[:, :, :, _ALL, 2]),
        _mean(precision[_IOU_50, :, :, _ALL, 2]),
        _mean(precision[_IOU_75, :, :, _ALL, 2]),
        *(_mean(precision[:, :, :, area, 2]) for area in (_SMALL, _MEDIUM, _LARGE)),
    ]
    ar = [
        *(_mean(recall[:, :, _ALL, limit]) for limit in range(3)),
        *(_mean(recall[:, :, area, 2]) for area in (_SMALL, _MEDIUM, _LARGE)),
    ]
    return (*ap, *ar)


def summarize_keypoints(precision: _Array, recall: _Array) -> tuple[float, ...]:
    """The 10 COCO numbers of keypoints, from tables as in `summarize` with 3 area ranges and 1 detection limit."""
    areas = (_KEYPOINT_MEDIUM, _KEYPOINT_LARGE)
    return (
        _mean(precision[:, :, :, _ALL]),
        _mean(precision[_IOU_50, :, :, _ALL]),
        _mean(precision[_IOU_75, :, :, _ALL]),
        *(_mean(precision[:, :, :, area]) for area in areas),
        _mean(recall[:, :, _ALL]),
        _mean(recall[_IOU_50, :, _ALL]),
        _mean(recall[_IOU_75, :, _ALL]),
        *(_mean(recall[:, :, area]) for area in areas),
    )


def _mean(values: _Array) -> float:
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else NOT_DEFINED


def _category_scores(annotations: CocoDict, precisions: Mapping[str, _Array]) -> tuple[CategoryScore, ...]:
    names = {category["id"]: category.get("name", str(category["id"])) for category in annotations["categories"]}
    counts = dict.fromkeys(names, 0)
    for annotation in annotations["annotations"]:
        counts[annotation["category_id"]] += not annotation.get("iscrowd", 0)
    with_keypoints = keypoint_categories(annotations)
    ap = {
        kind: dict(
            zip(
                sorted(with_keypoints if kind == "keypoints" else names),
                (_mean(precision[:, :, index, _ALL, -1]) for index in range(precision.shape[2])),
                strict=True,
            )
        )
        for kind, precision in precisions.items()
    }
    return tuple(
        CategoryScore(
            category_id,
            names[category_id],
            counts[category_id],
            {kind: values.get(category_id, NOT_DEFINED) for kind, values in ap.items()},
        )
        for category_id in sorted(names)
    )


def check_annotations(annotations: CocoDict) -> dict[int, CocoDict]:
    """Image entries by id, after checking every field that the engines read.

    Raises:
        AnnotationError: naming the entry and the field.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(annotations.get(key), list):
            raise AnnotationError(f"the annotations have no list {key!r}; expected COCO instances JSON")
        if key != "annotations" and not all(isinstance(e, dict) and type(e.get("id")) is int for e in annotations[key]):
            raise AnnotationError(f"{key!r} holds an entry without a whole number as id; expected COCO instances JSON")
    images = {image["id"]: image for image in annotations["images"]}
    if len(images) != len(annotations["images"]):
        raise AnnotationError("the annotation file has two images with one id; expected unique ids")
    category_ids = {category["id"] for category in annotations["categories"]}
    for annotation in annotations["annotations"]:
        if not isinstance(annotation, dict):
            raise AnnotationError(f"an annotation is {annotation!r}; expected COCO instances JSON")
        where = f"annotation {annotation.get('id', annotation)}"
        for key in ("id", "image_id", "category_id", "bbox", "area"):
            if key not in annotation:
                raise AnnotationError(f"{where}: {key!r} is missing; COCO's scoring needs it")
        if annotation["image_id"] not in images:
            raise AnnotationError(
                f"{where}: image_id {annotation['image_id']} is not among the images; add or remove it"
            )
        if annotation["category_id"] not in category_ids:
            raise AnnotationError(
                f"{where}: category_id {annotation['category_id']} is not among the categories; add or remove it"
            )
    return images


def _reason_without_masks(annotations: CocoDict, rows: pa.Table) -> dict[str, str]:
    """Why masks cannot be scored, as an entry of `CocoScores.skipped`; empty if they can."""
    bare = [annotation["id"] for annotation in annotations["annotations"] if not annotation.get("segmentation")]
    if bare:
        return {"segm": f"{len(bare)} annotations have no segmentation (the first is annotation {bare[0]})"}
    sizeless = [image["id"] for image in annotations["images"] if not (image.get("width") and image.get("height"))]
    if sizeless:
        return {"segm": f"{len(sizeless)} images have no width and height (the first is image {sizeless[0]})"}
    maskless = count_without_mask(rows)
    return {"segm": f"{maskless} detections have no mask"} if maskless else {}


def _accumulate(
    annotations: CocoDict,
    results: list[CocoDict],
    iou_type: IouType,
    limits: list[int],
    engine: Engine,
    keypoint_sigmas: Sequence[float] | None,
) -> tuple[_Array, _Array]:
    """Precision and recall tables in the shapes that `summarize` and `summarize_keypoints` take."""
    coco_class, eval_class = _engine_classes(engine)
    known = _category_ids(annotations)
    results = [result for result in results if result["category_id"] in known]
    # The engines write into what they are given (ids, areas, polygons turned into RLE), so both get copies.
    copies = [{"iscrowd": 0, **annotation} for annotation in annotations["annotations"]]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print
        truth = _load(coco_class, {**annotations, "annotations": copies})
        found = truth.loadRes(results) if results else _load(coco_class, {**annotations, "annotations": []})
        evaluation = eval_class(truth, found, iou_type)
        evaluation.params.maxDets = limits
        if iou_type == "keypoints" and keypoint_sigmas is not None:
            evaluation.params.kpt_oks_sigmas = (
                np.array(keypoint_sigmas) if engine == "pycocotools" else list(keypoint_sigmas)
            )
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _category_ids(annotations: CocoDict) -> set[int]:
    return {category["id"] for category in annotations["categories"]}


def _load(coco_class: Any, dataset: CocoDict) -> Any:
    coco = coco_class()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _engine_classes(engine: Engine) -> tuple[Any, Any]:
    # Imported here, so that scoring with one engine does not need the other.
    if engine == "hotcoco":
        import hotcoco

        return hotcoco.COCO, hotcoco.COCOeval
    from pycocotools import coco, cocoeval

    return coco.COCO, cocoeval.COCOeval
