"""Details beyond the 12 numbers: by hand on toy cases, and equal to libraries that have them."""

import contextlib
import copy
import io
import json
from typing import Any

import numpy as np
import pytest

from maskrcnn_core.evaluation.analyse import build_comparison, build_details
from maskrcnn_core.evaluation.analysis import EvaluationDetails
from maskrcnn_core.evaluation.bootstrap import ap_interval, compare_runs
from maskrcnn_core.evaluation.boundary import inner_border, match_boundaries
from maskrcnn_core.evaluation.calibration import calibrate
from maskrcnn_core.evaluation.coco import finish_scores, summarize
from maskrcnn_core.evaluation.curves import best_threshold
from maskrcnn_core.evaluation.federated import FEDERATED_STAT_NAMES, match_federated, summarize_federated
from maskrcnn_core.evaluation.match_precision import average_precision, rankings
from maskrcnn_core.evaluation.matches import Matches, match_everything, merge_matches
from maskrcnn_core.evaluation.results import match_labels
from maskrcnn_core.evaluation.scoring_states import IouType, ScoringRules, merge_states
from maskrcnn_core.evaluation.shards import FoundInRows, ScoringPlan, ShardScores, merge_shards, score_shard
from maskrcnn_core.evaluation.tide import analyse_errors
from tests.core.evaluation.synthetic import random_problem, rectangle_rle
from tests.core.evaluation.test_scoring_states import problem, rules_for

KINDS: tuple[IouType, ...] = ("bbox", "segm", "keypoints")
RULES = ScoringRules("bbox", (1, 2), (1, 10, 100))


def an_object(number: int, category_id: int, box: list[float], image_id: int = 1, crowd: int = 0) -> dict[str, Any]:
    area = box[2] * box[3]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": area,
        "iscrowd": crowd,
    }


def found(category_id: int, score: float, box: list[float], image_id: int = 1) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "score": score, "bbox": box}


def toy() -> Matches:
    """Objects of category 1 at x = 0, 100, 200, 300, 400 and of category 2 at 500; all 10 x 10 pixels.

    Of category 1: the one at 0 is found (0.9) and found again (0.8); half of the one at 100 is found, IoU 0.4 (0.7);
    the one at 200 is taken for category 2 (0.95); nothing is about those at 300 and 400; one detection is anywhere
    (0.6). Of category 2: a detection with IoU 0.4 on the first object (0.5) is wrong in both.
    """
    objects = [an_object(n + 1, 1, [100.0 * n, 0, 10, 10]) for n in range(5)] + [an_object(6, 2, [500.0, 0, 10, 10])]
    results = [
        found(1, 0.9, [0, 0, 10, 10]),
        found(1, 0.8, [0, 0, 10, 10]),
        found(1, 0.7, [100, 0, 4, 10]),
        found(2, 0.95, [200, 0, 10, 10]),
        found(1, 0.6, [800, 0, 10, 10]),
        found(2, 0.5, [0, 0, 4, 10]),
    ]
    return match_everything(RULES, [{"id": 1}], objects, results, min_score=0.55)


def test_error_analysis_by_hand() -> None:
    """One of five objects of category 1 is found first of all: precision is 1 at the recalls 0 .. 0.20, 21 of 101.

    Category 2 finds nothing. So AP = 21/101/2. Mended one kind at a time:

    - localisation: hits at ranks 1 and 3 of category 1, recall 0.4, precision 1 to 0.2 and 2/3 to 0.4
    - classification: the best detection of category 1 is now that of 0.95: two hits first, 41 of 101 at precision 1
    - duplicate, background, both: what they remove stands behind the hits, so nothing is gained
    - missed: objects 4, 5 and 6 (not 2 and 3, which errors are about): category 1 has 3 objects, recall 1/3: 34 of 101;
      category 2 has none left to ask for
    - no wrong detection: nothing is gained. No missing object: all that is asked for is found first
    """
    errors = analyse_errors(toy(), 2)
    assert errors.counts == {
        "classification": 1,
        "localisation": 1,
        "both": 1,
        "duplicate": 1,
        "background": 1,
        "missed": 3,
    }
    assert errors.ap == pytest.approx(21 / 101 / 2)
    assert errors.ap_costs == pytest.approx(
        {
            "classification": 20 / 101 / 2,
            "localisation": 20 / 101 * 2 / 3 / 2,
            "both": 0.0,
            "duplicate": 0.0,
            "background": 0.0,
            "missed": 13 / 101 / 2,
        }
    )
    assert errors.false_positive_cost == pytest.approx(0.0)
    assert errors.false_negative_cost == pytest.approx(80 / 101 / 2)


def test_wrong_detections_before_right_ones_cost() -> None:
    """A background error before the only hit halves the precision; a duplicate after it costs nothing."""
    objects = [an_object(1, 1, [0.0, 0, 10, 10])]
    results = [found(1, 0.9, [50, 0, 10, 10]), found(1, 0.8, [0, 0, 10, 10]), found(1, 0.7, [0, 0, 10, 10])]
    errors = analyse_errors(match_everything(RULES, [{"id": 1}], objects, results, 0.5), 2)
    assert errors.ap == pytest.approx(0.5)
    assert errors.ap_costs["background"] == errors.false_positive_cost == pytest.approx(0.5)
    assert errors.ap_costs["duplicate"] == 0


def test_confusion_matrix_by_hand() -> None:
    """Rows are annotated. Detections below 0.55 are left out; what is found twice is background the second time."""
    assert toy().confusion.tolist() == [[1, 1, 3], [0, 0, 1], [3, 0, 0]]


def test_crowd_regions_are_neither_right_nor_wrong() -> None:
    objects = [an_object(1, 1, [0.0, 0, 50, 50], crowd=1)]
    matches = match_everything(RULES, [{"id": 1}], objects, [found(1, 0.9, [5, 5, 10, 10])] * 2, 0.5)
    assert matches.ignored.all()
    assert not matches.hits.any()
    assert matches.confusion.sum() == 0
    assert calibrate(matches).ece == 0
    assert analyse_errors(matches, 2).ap == -1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_matches_give_pycocotools_precision(kind: IouType, seed: int) -> None:
    annotations, results, tables = problem(kind, seed)
    rules = rules_for(kind, annotations, "hotcoco")
    parts = [
        match_everything(
            rules,
            [image for image in annotations["images"] if image["id"] % 3 == part],
            [one for one in annotations["annotations"] if one["image_id"] % 3 == part],
            [one for one in results if one["image_id"] % 3 == part],
            0.5,
        )
        for part in (2, 0, 1)
    ]
    ids = np.unique([image["id"] for image in annotations["images"]])
    found = np.array([average_precision(one) for one in rankings(merge_matches(parts), len(rules.category_ids), ids)])
    precision = tables.precision[:, :, :, 0, -1]
    expected = np.where(precision[:, 0] == -1, -1, precision.mean(axis=1)).T
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_calibration_by_hand() -> None:
    """Four detections of score 0.8, of which three are right, and one of 0.25 that is wrong."""
    objects = [an_object(n, 1, [100.0 * n, 0, 10, 10]) for n in range(1, 4)]
    results = [found(1, 0.8, [100.0 * n, 0, 10, 10]) for n in range(1, 5)] + [found(1, 0.25, [900, 0, 9, 9])]
    calibration = calibrate(match_everything(RULES, [{"id": 1}], objects, results, 0.5))
    assert calibration.ece == pytest.approx((4 * 0.05 + 1 * 0.25) / 5)
    assert calibration.mce == pytest.approx(0.25)
    assert [one.count for one in calibration.bins] == [0, 0, 1, 0, 0, 0, 0, 4, 0, 0]
    assert calibration.bins[7].precision == 0.75


def test_best_threshold_by_hand() -> None:
    """Two objects: right at 0.9, then wrong and right at the same 0.6, then wrong: best to keep 0.6, F1 = 2*2/(3+2)."""
    objects = [an_object(1, 1, [0.0, 0, 10, 10]), an_object(2, 1, [100.0, 0, 10, 10])]
    results = [
        found(1, 0.9, [0, 0, 10, 10]),
        found(1, 0.6, [50, 0, 10, 10]),
        found(1, 0.6, [100, 0, 10, 10]),
        found(1, 0.3, [300, 0, 10, 10]),
    ]
    matches = match_everything(RULES, [{"id": 1}], objects, results, 0.5)
    first, second = rankings(matches, 2, np.array([1]))
    best = best_threshold(first)
    assert (best.score, best.f1, best.precision, best.recall) == pytest.approx((0.6, 0.8, 2 / 3, 1.0))
    assert best_threshold(second).score == -1


def run_of(images: int, right: float, seed: int) -> Matches:
    """An object in each image, found with a probability, and otherwise a wrong detection."""
    random = np.random.default_rng(seed)
    hit = random.random(images) < right
    objects = [an_object(n + 1, 1, [0.0, 0, 10, 10], image_id=n) for n in range(images)]
    results = [found(1, 0.5, [0.0 if hit[n] else 50.0, 0, 10, 10], image_id=n) for n in range(images)]
    return match_everything(RULES, [{"id": n} for n in range(images)], objects, results, 0.5)


def test_intervals_hold_the_truth_and_narrow_with_more_images() -> None:
    widths = []
    for images in (40, 360):
        ids = np.arange(images)
        interval = ap_interval(rankings(run_of(images, 0.8, 1), 2, ids), images, samples=100)
        assert interval.low < interval.value < interval.high
        widths.append(interval.high - interval.low)
    assert 2 < widths[0] / widths[1] < 4.5  # the square root of 9, about


def test_runs_that_differ_and_runs_that_do_not() -> None:
    ids, named = np.arange(120), [(1, "one"), (2, "two")]
    good, same, bad = (rankings(run_of(120, right, seed), 2, ids) for right, seed in ((0.8, 1), (0.8, 2), (0.3, 3)))
    differing = compare_runs(good, bad, named, 120, samples=99)
    assert differing.difference.high < 0
    assert differing.p_value == pytest.approx(0.02)
    assert [one.name for one in differing.categories] == ["one"]  # the other has no objects
    assert differing.categories[0].difference.value == differing.difference.value == differing.second - differing.first
    alike = compare_runs(good, good, named, 120, samples=99)
    assert (alike.difference.low, alike.difference.high, alike.p_value) == (0, 0, 1)
    assert compare_runs(good, same, named, 120, samples=99).p_value > 0.05


def merged(seed: int, shards: int, **settings: Any) -> tuple[ScoringPlan, ShardScores, EvaluationDetails]:
    annotations, labels = random_problem(seed, 12)
    images = {image["id"]: image for image in annotations["images"]}
    rows, coverage = match_labels(labels, images)
    plan = ScoringPlan(tuple(annotations["categories"]), min_score=0.3, **settings)
    ids = np.array(rows.column("image_id").to_pylist())
    parts = [
        score_shard(
            plan,
            [image for image in images.values() if image["id"] % shards == shard],
            [one for one in annotations["annotations"] if one["image_id"] % shards == shard],
            FoundInRows(rows.take(np.flatnonzero(ids % shards == shard))),
        )
        for shard in range(shards)
    ]
    whole = merge_shards(parts)
    return plan, whole, build_details(plan, whole, finish_scores(plan, whole, coverage).tables, samples=20)


def test_details_of_shards_are_those_of_the_whole() -> None:
    one, many = (merged(3, shards, boundary=True)[2].to_json() for shards in (1, 5))
    assert one == many
    assert set(one) == {"bbox", "segm"}
    assert json.loads(json.dumps(one, allow_nan=False))
    kind = one["segm"]
    assert len(kind["ap_per_iou"]) == len(kind["ious"]) == 10
    assert (
        kind["ap_per_size"]["all"]
        == pytest.approx(kind["interval"]["value"])
        == pytest.approx(np.mean(kind["ap_per_iou"]))
    )
    assert [entry["name"] for entry in kind["categories"]] == ["cat", "bird", "dog", "never annotated"]
    assert kind["categories"][3]["curves"] == ()
    assert len(kind["mean_curves"][0]["precision"]) == 101
    assert len(kind["boundary"]) == 12
    assert one["bbox"]["boundary"] is None


def test_comparison_of_a_run_with_itself() -> None:
    plan, whole, _ = merged(3, 2)
    comparison = build_comparison(plan, whole, whole, samples=10).to_json()
    assert comparison["bbox"]["difference"]["value"] == 0
    assert comparison["segm"]["p_value"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_boundary_precision_equals_faster_coco_eval(seed: int) -> None:
    library = pytest.importorskip("faster_coco_eval")
    annotations, results, _ = problem("segm", seed)
    results = results + [
        {
            "image_id": one["image_id"],
            "category_id": one["category_id"],
            "score": 0.5 + 0.01 * (one["id"] % 9),
            "segmentation": rectangle_rle(int(one["bbox"][0]) + one["id"] % 3, *map(int, one["bbox"][1:])),
        }
        for one in annotations["annotations"]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = library.COCO(copy.deepcopy(annotations))
        evaluation = library.COCOeval_faster(truth, truth.loadRes(copy.deepcopy(results)), "boundary")
        evaluation.evaluate()
        evaluation.accumulate()
    rules = rules_for("segm", annotations, "hotcoco")
    states = [
        match_boundaries(
            rules,
            [image for image in annotations["images"] if image["id"] % 2 == part],
            [one for one in annotations["annotations"] if one["image_id"] % 2 == part],
            [one for one in results if one["image_id"] % 2 == part],
        )
        for part in (1, 0)
    ]
    tables = merge_states(states).finish()
    np.testing.assert_allclose(
        tables.precision, evaluation.eval["precision"].reshape(tables.precision.shape), atol=1e-12
    )
    np.testing.assert_array_equal(tables.recall, evaluation.eval["recall"].reshape(tables.recall.shape))
    assert summarize(tables.precision, tables.recall)[0] > 0.1


def test_border_by_eye() -> None:
    """In an image whose diagonal is 50 pixels borders are one pixel wide; the image's edge is outside."""
    from pycocotools import mask as coco_mask

    mask = np.zeros((30, 40), np.uint8, order="F")
    mask[0:4, 5:10] = 1
    border = coco_mask.decode(inner_border(coco_mask.encode(mask)))
    expected = mask.copy()
    expected[1:3, 6:9] = 0
    np.testing.assert_array_equal(border, expected)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_federated_precision_equals_hotcoco(kind: IouType, seed: int) -> None:
    import hotcoco

    annotations, results, _ = problem(kind, seed)
    annotations = copy.deepcopy(annotations)
    random = np.random.default_rng(seed)
    annotations["annotations"] = [one for one in annotations["annotations"] if not one["iscrowd"]]
    for category, frequency in zip(annotations["categories"], "rcfc", strict=True):
        category["frequency"] = frequency
    present: dict[int, set[int]] = {image["id"]: set() for image in annotations["images"]}
    for one in annotations["annotations"]:
        present[one["image_id"]].add(one["category_id"])
    for image in annotations["images"]:
        others = sorted({2, 4, 7, 9} - present[image["id"]])
        image["neg_category_ids"] = [category for category in others if random.random() < 0.5]
        image["not_exhaustive_category_ids"] = [c for c in sorted(present[image["id"]]) if random.random() < 0.4]
    truth = hotcoco.COCO(annotations)
    evaluation = hotcoco.COCOeval(truth, truth.load_res(results), kind, lvis_style=True)
    evaluation.run()
    rules = rules_for(kind, annotations, "hotcoco")
    state = match_federated(rules, annotations["images"], annotations["annotations"], results)
    scores = summarize_federated(annotations["categories"], state.finish())
    assert dict(zip(FEDERATED_STAT_NAMES, scores.stats, strict=True)) == pytest.approx(
        dict(zip(FEDERATED_STAT_NAMES, np.asarray(evaluation.stats).tolist(), strict=True)), abs=1e-12
    )
    assert len(set(scores.stats)) > 5
