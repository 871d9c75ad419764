import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.coco import STAT_NAMES, evaluate_coco
from maskrcnn_core.evaluation.scoring_states import Engine, IouType
from tests.core.evaluation.synthetic import (
    annotation,
    annotation_file,
    detection,
    found,
    label_table,
    random_problem,
)

ENGINES: tuple[Engine, ...] = ("hotcoco", "pycocotools")


def pycocotools_by_hand(annotations: dict[str, Any], labels: pa.Table, iou_type: IouType) -> list[float]:
    """The numbers as a user of pycocotools gets them from two JSON files."""
    known = {image["id"] for image in annotations["images"]}
    results = []
    for row in labels.to_pylist():
        for one in row["detections"] if row["image_id"] in known else []:
            shape = {"bbox": one["bbox"]} if iou_type == "bbox" else {"segmentation": one["segmentation"]}
            results.append(
                {"image_id": row["image_id"], "category_id": one["category_id"], "score": one["score"], **shape}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(annotations))
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(6))
def test_numbers_equal_pycocotools_bit_for_bit(seed: int, engine: Engine) -> None:
    annotations, labels = random_problem(seed)
    scores = evaluate_coco(annotations, labels, engine=engine)
    for iou_type in ("bbox", "segm"):
        assert list(scores.stats[iou_type]) == pycocotools_by_hand(annotations, labels, iou_type)
    assert len(set(scores.stats["bbox"])) > 6  # not all -1, 0 or 1
    assert scores.stats["bbox"] != scores.stats["segm"]


@pytest.mark.parametrize("max_detections", [10, 37])
@pytest.mark.parametrize("seed", range(3))
def test_engines_agree_on_every_number(seed: int, max_detections: int) -> None:
    annotations, labels = random_problem(100 + seed)
    ours, reference = (evaluate_coco(annotations, labels, max_detections=max_detections, engine=e) for e in ENGINES)
    assert ours == reference
    assert len(ours.per_category) == 4


@pytest.mark.parametrize("engine", ENGINES)
def test_two_objects_one_found(engine: Engine) -> None:
    # One of two cats found exactly, nothing else: recall stops at 0.5, so precision is 1 on the recalls 0 .. 0.50
    # (51 of 101) and 0 beyond. The object found has 40 x 40 = 1600 pixels (medium), the other 20 x 20 (small).
    annotations = annotation_file([annotation(1, 1, 2, [10, 10, 40, 40]), annotation(2, 1, 2, [90, 90, 20, 20])], [1])
    scores = evaluate_coco(annotations, label_table({1: found(detection(2, 0.9, [10, 10, 40, 40]))}), engine=engine)
    ap = 51 / 101
    expected = {"AP": ap, "AP50": ap, "AP75": ap, "APs": 0, "APm": 1, "APl": -1}
    expected |= {"AR1": 0.5, "AR10": 0.5, "AR100": 0.5, "ARs": 0, "ARm": 1, "ARl": -1}
    assert dict(zip(STAT_NAMES, scores.stats["bbox"], strict=True)) == pytest.approx(expected)
    # The mask covers the left half of the object, IoU 0.5: found at the first of ten thresholds only.
    assert scores.stats["segm"][:3] == pytest.approx((ap / 10, ap, 0))
    by_name = {category.name: category for category in scores.per_category}
    assert by_name["cat"].ap["bbox"] == pytest.approx(ap)
    assert by_name["dog"].ap == {"bbox": -1, "segm": -1}
    assert (by_name["cat"].annotations, scores.annotations, scores.detections) == (2, 2, 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mask_is_filed_under_its_own_area(engine: Engine) -> None:
    # Unmatched detections outside the area range are ignored. Here a wrong detection comes first; its box of 40 x 40 is
    # medium, its mask of 20 x 40 = 800 pixels is small. So it harms APs of the masks (precision 1/2) and not APm.
    annotations = annotation_file([annotation(1, 1, 2, [0, 0, 10, 20]), annotation(2, 1, 2, [0, 30, 40, 40])], [1])
    wrong = detection(2, 0.9, [100, 70, 40, 40])
    right = (detection(2, 0.8, [0, 0, 20, 20]), detection(2, 0.8, [0, 30, 80, 40]))
    scores = evaluate_coco(annotations, label_table({1: found(wrong, *right)}), engine=engine)
    assert scores.stats["segm"][3:5] == pytest.approx((0.5, 1.0))


@pytest.mark.parametrize("engine", ENGINES)
def test_no_detections_score_zero(engine: Engine) -> None:
    annotations = annotation_file([annotation(1, 1, 2, [10, 10, 40, 40])], [1])
    scores = evaluate_coco(annotations, label_table({1: found()}), engine=engine)
    assert scores.stats["bbox"] == scores.stats["segm"] == (0, 0, 0, -1, 0, -1, 0, 0, 0, -1, 0, -1)
    assert scores.detections == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_no_objects_leave_every_number_undefined(engine: Engine) -> None:
    crowd = annotation(1, 1, 2, [10, 10, 40, 40], crowd=1)
    for annotations in (annotation_file([], [1, 2]), annotation_file([crowd], [1, 2])):
        scores = evaluate_coco(annotations, label_table({1: found(detection(2, 0.9, [1, 1, 9, 9]))}), engine=engine)
        assert scores.stats["bbox"] == scores.stats["segm"] == (-1.0,) * 12
        assert scores.annotations == 0


def test_images_that_were_not_labelled_count_as_empty() -> None:
    annotations = annotation_file(
        [annotation(number, number, 2, [10, 10, 40, 40]) for number in (1, 2, 3, 4)], [1, 2, 3, 4]
    )
    perfect = found(detection(2, 0.9, [10, 10, 40, 40]))
    all_four = evaluate_coco(annotations, label_table(dict.fromkeys([1, 2, 3, 4], perfect)))
    assert all_four.stats["bbox"][8] == 1
    half = evaluate_coco(annotations, label_table({1: perfect, 2: perfect, 77: perfect}))
    assert half.stats["bbox"][8] == 0.5
    assert (half.coverage.labelled, half.coverage.unlabelled, half.coverage.unknown) == (2, 2, 1)


def test_inputs_are_not_changed() -> None:
    annotations, labels = random_problem(0)
    before = copy.deepcopy(annotations)
    for engine in ENGINES:
        evaluate_coco(annotations, labels, engine=engine)
    assert annotations == before


def test_annotations_without_iscrowd_are_objects() -> None:
    annotations, labels = random_problem(1)
    annotations["annotations"] = [one for one in annotations["annotations"] if not one["iscrowd"]]
    bare = copy.deepcopy(annotations)
    for one in bare["annotations"]:
        del one["iscrowd"]
    for engine in ENGINES:
        assert evaluate_coco(bare, labels, engine=engine) == evaluate_coco(annotations, labels, engine=engine)


def test_masks_are_skipped_with_a_reason() -> None:
    annotations, labels = random_problem(2)
    boxes_only = copy.deepcopy(annotations)
    for one in boxes_only["annotations"]:
        del one["segmentation"]
    scores = evaluate_coco(boxes_only, labels)
    number = len(annotations["annotations"])
    assert scores.skipped == {"segm": f"{number} annotations have no segmentation (the first is annotation 1)"}
    assert set(scores.stats) == {"bbox"}
    assert scores.notes == ()  # of masks, which are not scored
    maskless = label_table({1: found(detection(2, 0.9, [10, 10, 40, 40], masked=False))})
    assert evaluate_coco(annotations, maskless).skipped == {"segm": "1 detections have no mask"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda a: a.pop("images"), "no list 'images'"),
        (lambda a: a["images"].append(a["images"][0]), "image 1: listed twice"),
        (lambda a: a["annotations"][0].pop("id"), "annotation at position 0: id None, expected a whole number"),
        (lambda a: a["annotations"][0].update(image_id=99), "annotation 1: image_id 99 is not in section 'images'"),
        (lambda a: a["annotations"][0].update(category_id=99), "annotation 1: category_id 99 is not in section"),
        (lambda a: a["categories"].pop(0), "category_id 2 is not in section 'categories'"),
    ],
)
def test_a_wrong_annotation_file_is_named(change: Any, expected: str) -> None:
    annotations = annotation_file([annotation(1, 1, 2, [10, 10, 40, 40])], [1])
    change(annotations)
    with pytest.raises(AnnotationError, match=expected):
        evaluate_coco(annotations, label_table({1: found()}))


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_detections_of_unknown_categories_are_left_out_and_counted(engine: Engine) -> None:
    annotations = annotation_file([annotation(1, 1, 2, [10, 10, 40, 40])], [1])
    annotations["categories"] = annotations["categories"][:1]
    right = detection(2, 0.8, [10, 10, 40, 40])
    expected = evaluate_coco(annotations, label_table({1: found(right)}), engine=engine)
    scores = evaluate_coco(
        annotations, label_table({1: found(detection(7, 0.9, [10, 10, 40, 40]), right)}), engine=engine
    )
    assert scores.stats == expected.stats
    assert scores.stats["bbox"][0] == pytest.approx(1.0)
    assert scores.unknown_categories == {"dog": 1}
    assert expected.unknown_categories == {}


def test_labels_that_share_no_category_with_the_annotations_are_refused() -> None:
    annotations = annotation_file([annotation(1, 1, 2, [10, 10, 40, 40])], [1])
    annotations["categories"] = annotations["categories"][:1]
    with pytest.raises(AnnotationError, match=r"image 1: a detection has category_id 7 \('dog'\).*\(2\)"):
        evaluate_coco(annotations, label_table({1: found(detection(7, 0.9, [10, 10, 40, 40]))}))


def test_real_annotations(shared_data: Path) -> None:
    """Ground truth of COCO moved by some pixels, with scores that tie, as labels."""
    from pycocotools import mask as coco_mask

    from maskrcnn_core.config.model import Category
    from maskrcnn_core.records.detections import DetectionRecord
    from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table

    annotations = json.loads((shared_data / "coco/annotations/instances_val.json").read_text())
    random = np.random.default_rng(0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(shared_data / "coco/annotations/instances_val.json")
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    records = []
    for image in annotations["images"]:
        detections = []
        for one in truth.imgToAnns[image["id"]] * 2:
            mask = np.roll(truth.annToMask(one), random.integers(-4, 5, 2), (0, 1))
            box = np.maximum(np.array(one["bbox"]) + random.normal(0, 3, 4), 1).tolist()
            counts = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
            score = round(float(random.random()), 1)
            detections.append(DetectionRecord(one["category_id"], names[one["category_id"]], score, box, counts))
        records.append(ImageRecord("ok", None, image["width"], image["height"], tuple(detections)))
    schema = record_schema([Category(key, name) for key, name in names.items()])
    ids = [image["id"] for image in annotations["images"]]
    labels = records_to_table(ids, [str(one) for one in ids], records, "model", schema)
    for engine in ENGINES:
        scores = evaluate_coco(annotations, labels, engine=engine)
        for iou_type in ("bbox", "segm"):
            assert list(scores.stats[iou_type]) == pycocotools_by_hand(annotations, labels, iou_type)
    assert scores.coverage.labelled == len(ids)
