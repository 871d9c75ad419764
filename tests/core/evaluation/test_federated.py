"""LVIS' limit of detections: the best 300 of an image, whatever their categories."""

from typing import Any

import pytest

from maskrcnn_core.evaluation.federated import MAX_DETECTIONS, match_federated, summarize_federated
from tests.core.evaluation.test_scoring_states import rules_for


def scores_with(wrong: int) -> dict[str, float]:
    """LVIS' AP where an image has so many sure detections of one category, none of them right, and one of another, the
    least sure and right."""
    boxes = ([0.0, 0.0, 20.0, 20.0], [40.0, 40.0, 20.0, 20.0])
    annotations: dict[str, Any] = {
        "images": [{"id": 1, "width": 100, "height": 100, "neg_category_ids": []}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": k, "bbox": box, "area": 400.0, "iscrowd": 0}
            for k, box in enumerate(boxes, 1)
        ],
    }
    results = [
        {"image_id": 1, "category_id": 1, "bbox": [70.0, 70.0, 5.0, 5.0], "score": 0.9 - 1e-4 * rank}
        for rank in range(wrong)
    ]
    results.append({"image_id": 1, "category_id": 2, "bbox": boxes[1], "score": 0.1})
    rules = rules_for("bbox", annotations, "hotcoco")
    state = match_federated(rules, annotations["images"], annotations["annotations"], results)
    found = summarize_federated(annotations["categories"], state.finish())
    return dict(zip(("AP", "AP50"), found.stats, strict=False))


def test_the_best_300_of_an_image_count_over_all_categories() -> None:
    assert scores_with(MAX_DETECTIONS - 1)["AP50"] == pytest.approx(0.5)  # one category found, one not
    assert scores_with(MAX_DETECTIONS)["AP50"] == 0.0  # the right one is the 301st
