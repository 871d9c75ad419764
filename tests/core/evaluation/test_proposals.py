"""Average recall against pycocotools with `useCats = 0`, and by eye."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_core.evaluation.annotations import read_document
from maskrcnn_core.evaluation.proposals import (
    PROPOSAL_STAT_NAMES,
    ObjectBoxes,
    RecallCounts,
    annotated_boxes,
    count_recall,
    no_recall,
    recall_metrics,
    summarize_recall,
)
from tests.core.evaluation.synthetic import HEIGHT, WIDTH, annotation, annotation_file

Found = dict[int, tuple[np.ndarray, np.ndarray]]


def problem(seed: int, images: int = 40, most: int = 1200) -> tuple[dict[str, Any], Found]:
    """Objects of all sizes, crowds, equal boxes and scores, images without objects or proposals, more than 1000."""
    random = np.random.default_rng(seed)
    entries: list[dict[str, Any]] = []
    found: Found = {}
    for image_id in range(1, images + 1):
        near = [np.empty((0, 4))]
        for _ in range(random.integers(0, 6) if image_id % 7 else 0):
            w, h = [(32, 32), (96, 96), (32, 96), tuple(random.integers(3, 110, 2).tolist())][random.integers(0, 4)]
            box = [int(random.integers(0, WIDTH - w)), int(random.integers(0, HEIGHT - h)), w, h]
            crowd = int(random.random() < 0.15)
            for _ in range(1 + (random.random() < 0.2)):  # some objects twice, so that overlaps are equal
                entries.append(annotation(len(entries) + 1, image_id, int(random.choice([2, 7, 4])), box, crowd))
            near.append(np.array(box) + random.normal(0, 0.1 * min(w, h), (random.integers(0, 30), 4)))
        far = random.uniform(1, 60, (most if image_id == 5 else int(random.integers(0, 60)), 4))
        boxes = np.maximum(np.concatenate([*near, far]), 1.0).round(random.integers(0, 3)).astype(np.float32)
        if image_id % 9:
            found[image_id] = (boxes, random.random(len(boxes)).round(2).astype(np.float32))
    return annotation_file(entries, list(range(1, images + 1))), found


def ours(annotations: dict[str, Any], found: Found, parts: int = 1) -> tuple[float, ...]:
    nothing = (np.empty((0, 4), np.float32), np.empty(0, np.float32))
    rows = [
        (*found.get(image_id, nothing), objects)
        for image_id, objects in annotated_boxes(read_document(annotations)).items()
    ]
    total = no_recall()
    for part in range(parts):
        total = total + count_recall(rows[part::parts])
    return summarize_recall(total)


def reference(annotations: dict[str, Any], found: Found) -> tuple[float, ...]:
    results = [
        {"image_id": image_id, "category_id": 2, "bbox": [float(value) for value in box], "score": float(score)}
        for image_id, (boxes, scores) in found.items()
        for box, score in zip(boxes, scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [10, 100, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"]  # [10 thresholds, 1, 4 areas, 3 limits]
    values = [recall[:, 0, area, limit] for area, limit in ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (3, 2))]
    return tuple(float(np.mean(value[value > -1])) if (value > -1).any() else -1.0 for value in values)


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_pycocotools_bit_for_bit(seed: int) -> None:
    annotations, found = problem(seed)
    assert ours(annotations, found) == reference(annotations, found)
    assert min(ours(annotations, found)) > 0.05


def test_only_small_objects_leaves_the_others_undefined() -> None:
    annotations = annotation_file([annotation(1, 1, 2, [10, 10, 20, 20])], [1])
    found = {1: (np.array([[10, 10, 20, 20]], np.float32), np.array([0.5], np.float32))}
    assert ours(annotations, found) == reference(annotations, found) == (1.0, 1.0, 1.0, 1.0, -1.0, -1.0)
    names = ("AR@10", "AR@100", "AR@1000", "ARs@1000")
    assert recall_metrics(ours(annotations, found)) == dict.fromkeys(names, 1.0)


def test_parts_add_up_exactly() -> None:
    annotations, found = problem(9)
    assert ours(annotations, found, parts=5) == ours(annotations, found)


def test_one_object_by_eye() -> None:
    """A box of 10 x 10 moved by 2 pixels covers 80 of 120: IoU 2/3, enough for 0.50, 0.55, 0.60 and 0.65."""
    objects = ObjectBoxes(np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([100.0]))
    moved = np.array([[2.0, 0.0, 10.0, 10.0]], np.float32)
    stats = summarize_recall(count_recall([(moved, np.array([0.1], np.float32), objects)]))
    assert stats == pytest.approx((0.4, 0.4, 0.4, 0.4, -1.0, -1.0))


def test_each_number_counts_its_best_proposals() -> None:
    objects = ObjectBoxes(np.array([[0.0, 0.0, 50.0, 50.0]]), np.array([2500.0]))
    boxes = np.array([[60.0, 60.0, 5.0, 5.0]] * 100 + [[0.0, 0.0, 50.0, 50.0]], np.float32)
    scores = np.linspace(1.0, 0.0, 101, dtype=np.float32)
    assert summarize_recall(count_recall([(boxes, scores, objects)])) == (0.0, 0.0, 1.0, -1.0, 1.0, -1.0)
    eleventh = count_recall([(boxes[90:], scores[90:], objects)])
    assert summarize_recall(eleventh) == (0.0, 1.0, 1.0, -1.0, 1.0, -1.0)
    first = count_recall([(boxes, scores[::-1].copy(), objects)])  # the order of scores decides, not of rows
    assert summarize_recall(first)[0] == 1.0
    assert first.proposals == 101


def test_nothing_at_all() -> None:
    assert summarize_recall(no_recall()) == (-1.0,) * len(PROPOSAL_STAT_NAMES)
    assert isinstance(count_recall([]), RecallCounts)
    empty = ObjectBoxes(np.empty((0, 4)), np.empty(0))
    counts = count_recall([(np.ones((3, 4), np.float32), np.ones(3, np.float32), empty)])
    assert (counts.proposals, counts.objects.sum()) == (3, 0)
