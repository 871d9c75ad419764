import numpy as np
import pytest

from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.report.examples import (
    IGNORED,
    NOTHING,
    judged_candidates,
    mask_overlap,
    match_objects,
    unjudged_candidates,
)
from tests.core.evaluation.synthetic import annotation, detection, found

NAMES = {2: "cat", 7: "dog"}


def test_each_object_is_found_once_by_the_best_detection() -> None:
    objects = [annotation(1, 1, 2, [10, 10, 20, 20]), annotation(2, 1, 2, [60, 10, 20, 20])]
    detections = [
        detection(2, 0.9, [11, 10, 20, 20]),  # the first object
        detection(2, 0.8, [10, 10, 20, 20]),  # fits even better, but comes second
        detection(7, 0.7, [60, 10, 20, 20]),  # the second object under another name
        detection(2, 0.6, [60, 10, 20, 11]),  # the second object, IoU 0.55
        detection(2, 0.5, [100, 90, 5, 5]),  # nothing there
    ]
    matched = match_objects(detections, objects)
    assert matched.object_of.tolist() == [0, NOTHING, NOTHING, 1, NOTHING]
    assert matched.detection_of.tolist() == [0, 3]
    assert matched.overlaps[3] == pytest.approx(0.55)
    assert match_objects(detections, objects, 0.6).detection_of.tolist() == [0, NOTHING]


def test_a_detection_in_a_crowd_is_neither_right_nor_wrong() -> None:
    objects = [annotation(1, 1, 2, [10, 10, 80, 80], crowd=1)]
    matched = match_objects([detection(2, 0.9, [20, 20, 10, 10]), detection(7, 0.8, [20, 20, 10, 10])], objects)
    assert matched.object_of.tolist() == [IGNORED, NOTHING]


@pytest.mark.parametrize(("detections", "objects"), [(0, 0), (2, 0), (0, 2)])
def test_empty_sides(detections: int, objects: int) -> None:
    boxes = [[10.0, 10.0, 9.0, 9.0]] * 2
    matched = match_objects(
        [detection(2, 0.9, box) for box in boxes[:detections]],
        [annotation(n, 1, 2, [10, 10, 9, 9]) for n in range(objects)],
    )
    assert matched.object_of.tolist() == [NOTHING] * detections
    assert matched.detection_of.tolist() == [NOTHING] * objects


def test_what_is_shown_and_why() -> None:
    objects = [
        annotation(1, 1, 2, [10, 10, 20, 20]),
        annotation(2, 1, 7, [60, 10, 20, 20]),
        annotation(3, 1, 7, [100, 60, 30, 30]),
        annotation(4, 1, 7, [0, 90, 10, 10]),
    ]
    record = found(
        detection(2, 0.9, [10, 10, 20, 20]),
        detection(2, 0.85, [10, 10, 20, 19]),
        detection(2, 0.8, [60, 10, 20, 20]),
        detection(7, 0.7, [60, 20, 20, 20]),
        detection(7, 0.6, [30, 60, 9, 9]),
        detection(7, 0.3, [0, 90, 10, 10]),
    )
    matched = match_objects(record.detections, objects)
    shown = judged_candidates(record, objects, matched, NAMES, 0.5)
    by_kind = {
        kind: [(one.title, one.note) for one in shown if one.kind == kind] for kind in {one.kind for one in shown}
    }
    # The mask of a synthetic detection is the left half of its box.
    assert by_kind["right"] == [("cat 0.90", "box IoU 1.00, mask IoU 0.50")]
    assert by_kind["mask"] == by_kind["right"]
    assert by_kind["wrong"] == [
        ("cat 0.85", "a second time the same object, IoU 0.95"),
        ("cat 0.80", "on dog, IoU 1.00"),
        ("dog 0.70", "badly placed, IoU 0.33"),
        ("dog 0.60", "on the background"),
    ]
    assert by_kind["missed"] == [
        ("dog", "20 × 20 px, not found at any score"),
        ("dog", "30 × 30 px, not found at any score"),
        ("dog", "10 × 10 px, found with score 0.30 only"),
    ]
    largest = max((one for one in shown if one.kind == "missed"), key=lambda one: one.interest)
    assert largest.box == (100, 60, 30, 30)


def test_mask_overlap_is_counted_in_pixels() -> None:
    record = found(detection(2, 0.9, [10, 10, 20, 20]))
    one = record.detections[0]
    assert mask_overlap(one, annotation(1, 1, 2, [10, 10, 10, 20]), record) == 1.0
    assert mask_overlap(one, annotation(1, 1, 2, [15, 10, 10, 20]), record) == pytest.approx(100 / 300)
    assert mask_overlap(one, annotation(1, 1, 2, [60, 60, 10, 20]), record) == 0.0
    assert mask_overlap(one, {"bbox": [0, 0, 1, 1]}, record) is None
    assert mask_overlap(one, {"segmentation": {"size": [1, 1], "counts": [1]}}, record) is None
    assert (
        mask_overlap(detection(2, 0.9, [1, 1, 9, 9], masked=False), annotation(1, 1, 2, [1, 1, 9, 9]), record) is None
    )


def test_without_ground_truth() -> None:
    record = found(detection(2, 0.9, [0, 0, 9, 9]), detection(7, 0.6, [9, 9, 20, 10]), detection(7, 0.2, [1, 1, 9, 9]))
    shown = {one.kind: one for one in unjudged_candidates(record, 0.5)}
    assert shown["crowded"].title == "2 objects of 2 categories"
    assert (shown["crowded"].box, shown["crowded"].interest) == (None, 2.0)
    assert shown["sure"].title == "cat 0.90"
    assert (shown["unsure"].title, shown["unsure"].note) == ("dog 0.60", "20 × 10 px")
    assert unjudged_candidates(record, 0.95) == []
    assert unjudged_candidates(ImageRecord("ok", None, 8, 8), 0.5) == []


def test_matching_agrees_with_the_scoring_of_coco() -> None:
    """Right detections and found objects as pycocotools counts them at IoU 0.50."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from maskrcnn_core.evaluation.results import coco_results
    from maskrcnn_core.records.labels import record_from_row
    from tests.core.evaluation.synthetic import random_problem

    annotations, labels = random_problem(5)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {**annotations, "annotations": [dict(entry) for entry in annotations["annotations"]]}
        truth.createIndex()
        ids = set(truth.imgs)
        results = [one for one in coco_results(labels, "bbox") if one["image_id"] in ids]
        scoring = COCOeval(truth, truth.loadRes(results), "bbox")
        scoring.evaluate()
    expected = sum(
        int(((one["dtMatches"][0] > 0) & ~one["dtIgnore"][0].astype(bool)).sum())
        for one in scoring.evalImgs
        if one is not None and one["aRng"] == scoring.params.areaRng[0]
    )
    right = 0
    for row in labels.to_pylist():
        objects = [entry for entry in annotations["annotations"] if entry["image_id"] == row["image_id"]]
        record = record_from_row(row)
        detections = sorted(record.detections, key=lambda one: -one.score)
        matched = match_objects(detections, objects)
        right += int((matched.object_of >= 0).sum())
        assert np.count_nonzero(matched.detection_of >= 0) == np.count_nonzero(matched.object_of >= 0)
    assert right == expected > 10
