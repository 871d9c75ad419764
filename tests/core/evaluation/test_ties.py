"""What is chosen among equals, and what may be counted once only."""

import numpy as np
import pytest

from maskrcnn_core.evaluation.curves import best_threshold
from maskrcnn_core.evaluation.match_precision import Ranking
from maskrcnn_core.evaluation.matches import match_everything
from maskrcnn_core.evaluation.tide import analyse_errors
from tests.core.evaluation.test_details import RULES


def test_of_equally_good_thresholds_the_highest_is_the_best() -> None:
    """One of three objects at 0.9, then three wrong ones, then the second: F1 is 2 * 1 / (1 + 3), and again 2 * 2 /
    (5 + 3)."""
    right = np.array([True, False, False, False, True])[:, None].repeat(10, 1)
    places = np.zeros(5, np.int64)
    found = best_threshold(Ranking(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), right, ~right, places, places[:3]))
    assert (found.score, found.f1) == (0.9, 0.5)


def test_two_detections_of_one_object_mend_it_once() -> None:
    """Of two objects of category 1 the first is detected twice as category 2. With the category mended one of the two
    is right and one of the two objects found: precision 1 up to recall 0.50, 51 of 101."""
    boxes = ([0.0, 0.0, 20.0, 20.0], [50.0, 50.0, 20.0, 20.0])
    ids = RULES.category_ids
    objects = [
        {"id": k, "image_id": 1, "category_id": ids[0], "bbox": box, "area": 400.0, "iscrowd": 0}
        for k, box in enumerate(boxes, 1)
    ]
    results = [
        {"image_id": 1, "category_id": ids[1], "bbox": boxes[0], "score": score, "id": k}
        for k, score in enumerate((0.9, 0.8), 1)
    ]
    errors = analyse_errors(match_everything(RULES, [{"id": 1}], objects, results, 0.5), 2)
    assert errors.counts["classification"] == 2
    assert errors.ap_costs["classification"] == pytest.approx(51 / 101)
