"""Keypoint scoring: equal to pycocotools, by eye, and what it says where there is nothing to score."""

import contextlib
import copy
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.evaluation.coco import (
    KEYPOINT_STAT_NAMES,
    NOT_DEFINED,
    STAT_NAMES,
    evaluate_coco,
    stat_names,
)
from maskrcnn_core.evaluation.scoring_states import Engine
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord
from tests.core.evaluation.synthetic import annotation, annotation_file, detection, found, label_table

ENGINES: tuple[Engine, ...] = ("hotcoco", "pycocotools")
NAMES = tuple(f"point {index}" for index in range(17))


def by_hand(annotations: dict[str, Any], labels: pa.Table, sigmas: Sequence[float] | None = None) -> list[float]:
    """The numbers as a user of pycocotools gets them, for the categories that have keypoints."""
    category_ids = {category["id"] for category in annotations["categories"] if category.get("keypoints")}
    results = [
        {key: one[key] for key in ("category_id", "score", "keypoints")} | {"image_id": row["image_id"]}
        for row in labels.to_pylist()
        for one in row["detections"]
        if one["keypoints"] and one["category_id"] in category_ids
    ]
    document = json.loads(json.dumps(annotations))
    document["annotations"] = [one for one in document["annotations"] if one["category_id"] in category_ids]
    document["categories"] = [one for one in document["categories"] if one["id"] in category_ids]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = document
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "keypoints")
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def person(number: int, image_id: int, box: list[int], points: np.ndarray, crowd: int = 0) -> dict[str, Any]:
    """A cat (category 2) with keypoints."""
    return annotation(number, image_id, 2, box, crowd) | {
        "keypoints": points.ravel().tolist(),
        "num_keypoints": int((points[:, 2] > 0).sum()),
    }


def with_points(points: np.ndarray, score: float, box: Sequence[float] = (1, 1, 9, 9)) -> DetectionRecord:
    flat = tuple(float(value) for value in points.ravel())
    return DetectionRecord(2, "cat", score, (box[0], box[1], box[2], box[3]), None, flat)


def keypoint_file(
    annotations: list[dict[str, Any]], image_ids: list[int], names: Sequence[str] = NAMES
) -> dict[str, Any]:
    document = annotation_file(annotations, image_ids)
    document["categories"][0]["keypoints"] = list(names)
    return document


def random_problem(seed: int, number: int = 17) -> tuple[dict[str, Any], pa.Table]:
    """Objects of every size and visibility, some without keypoints, crowds, other categories; more than 20 detections
    in an image, score ties, an image without a row."""
    random = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    records: dict[int, ImageRecord] = {}
    for image_id in range(1, 8):
        detections = []
        for _ in range(random.integers(0, 6)):
            side = int(random.choice([20, 32, 60, 96, 110]))
            x, y = random.integers(0, 150 - side + 1), random.integers(0, 120 - min(side, 119))
            points = np.stack(
                (
                    x + random.uniform(0, side, number),
                    y + random.uniform(0, side, number),
                    random.integers(0, 3, number),
                ),
                axis=1,
            ).round(1)
            points[:, 2] *= random.random() > 0.15  # some without a visible keypoint
            points[points[:, 2] == 0] = 0
            box = [int(x), int(y), side, side]
            annotations.append(person(len(annotations) + 1, image_id, box, points, int(random.random() < 0.1)))
            for _ in range(random.integers(0, 12)):
                moved = points.astype(np.float64)
                moved[:, :2] += random.normal(0, side * random.choice([0.02, 0.06, 0.2]), (number, 2))
                moved[:, 2] = random.random(number)
                detections.append(with_points(moved, round(float(random.random()), 1)))
        annotations.append(annotation(len(annotations) + 1, image_id, 7, [5, 5, 30, 30]))
        detections.append(detection(7, 0.5, [5, 5, 30, 30]))
        records[image_id] = found(*detections)
    del records[3]
    return keypoint_file(annotations, list(range(1, 8)), NAMES[:number]), label_table(records)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(5))
def test_numbers_equal_pycocotools_bit_for_bit(seed: int, engine: Engine) -> None:
    annotations, labels = random_problem(seed)
    scores = evaluate_coco(annotations, labels, engine=engine)
    assert list(scores.stats["keypoints"]) == by_hand(annotations, labels)
    assert len(set(scores.stats["keypoints"])) > 6  # not all -1, 0 or 1
    assert set(scores.stats) == {"bbox", "keypoints"}
    ap = {category.name: category.ap["keypoints"] for category in scores.per_category}
    assert ap == {"cat": scores.stats["keypoints"][0], "dog": -1, "bird": -1, "never annotated": -1}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [1, 5, 17])
def test_sigmas_of_ones_own(number: int, engine: Engine) -> None:
    annotations, labels = random_problem(7, number)
    sigmas = np.linspace(0.03, 0.1, number).tolist()
    scores = evaluate_coco(annotations, labels, engine=engine, keypoint_sigmas=sigmas)
    assert list(scores.stats["keypoints"]) == by_hand(annotations, labels, sigmas)
    assert 0 < scores.stats["keypoints"][0] < 1
    if number == 17:
        assert evaluate_coco(annotations, labels, engine=engine).stats["keypoints"] != scores.stats["keypoints"]


@pytest.mark.parametrize("engine", ENGINES)
def test_by_eye(engine: Engine) -> None:
    # Sigma 0.1 and area 50^2: a keypoint d pixels off has OKS exp(-d^2 / (2 * 2500 * 0.04)) = exp(-d^2 / 200). Both
    # visible ones 6 pixels off: 0.835, so found at the thresholds 0.50 .. 0.80, 7 of 10. The hidden one doesn't count.
    truth = np.array([[20.0, 20, 2], [40, 40, 1], [0, 0, 0]])
    guess = np.array([[26.0, 20, 0.9], [40, 46, 0.1], [99, 99, 0.5]])
    document = keypoint_file([person(1, 1, [10, 10, 50, 50], truth)], [1], NAMES[:3])
    labels = label_table({1: found(with_points(guess, 0.9))})
    scores = evaluate_coco(document, labels, engine=engine, keypoint_sigmas=(0.1, 0.1, 0.1))
    expected = {"AP": 0.7, "AP50": 1, "AP75": 1, "APm": 0.7, "APl": -1, "AR": 0.7, "AR50": 1, "AR75": 1}
    assert dict(zip(KEYPOINT_STAT_NAMES, scores.stats["keypoints"], strict=True)) == pytest.approx(
        expected | {"ARm": 0.7, "ARl": -1}
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_fields_that_a_file_may_leave_out(engine: Engine) -> None:
    """An object without keypoints, and keypoints without their number."""
    annotations, labels = random_problem(1)
    bare = copy.deepcopy(annotations)
    for one in bare["annotations"]:
        if not one.pop("num_keypoints", 1):
            del one["keypoints"]
    assert any("keypoints" not in one for one in bare["annotations"] if one["category_id"] == 2)
    before = copy.deepcopy(bare)
    assert evaluate_coco(bare, labels, engine=engine) == evaluate_coco(annotations, labels, engine=engine)
    assert bare == before


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_found_and_nothing_annotated(engine: Engine) -> None:
    points = np.full((17, 3), 2.0)
    one = keypoint_file([person(1, 1, [10, 10, 50, 50], points)], [1])
    nothing = evaluate_coco(one, label_table({1: found()}), engine=engine).stats["keypoints"]
    assert nothing == (0, 0, 0, 0, -1, 0, 0, 0, 0, -1)
    labels = label_table({1: found(with_points(points, 0.9))})
    none = evaluate_coco(keypoint_file([], [1]), labels, engine=engine)
    assert none.stats["keypoints"] == (NOT_DEFINED,) * 10


def test_silent_where_neither_side_has_keypoints() -> None:
    annotations = annotation_file([annotation(1, 1, 2, [10, 10, 40, 40])], [1])
    scores = evaluate_coco(annotations, label_table({1: found(detection(2, 0.9, [10, 10, 40, 40]))}))
    assert set(scores.stats) == {"bbox", "segm"}
    assert scores.skipped == {}


def test_what_cannot_be_scored_says_why() -> None:
    points = np.full((17, 3), 2.0)
    with_all = keypoint_file([person(1, 1, [10, 10, 40, 40], points)], [1])

    def reason(annotations: dict[str, Any], *detections: DetectionRecord) -> str | None:
        scores = evaluate_coco(annotations, label_table({1: found(*detections)}), ["bbox", "keypoints"])
        assert ("keypoints" in scores.stats) == ("keypoints" not in scores.skipped)
        return scores.skipped.get("keypoints")

    right = with_points(points, 0.9)
    assert reason(with_all, right) is None
    assert reason(with_all, right, detection(7, 0.9, [1, 1, 9, 9])) is None  # a dog has none
    assert reason(with_all, right, detection(2, 0.9, [1, 1, 9, 9])) == (
        "1 detections of categories with keypoints have none"
    )
    assert reason(with_all, with_points(points[:5], 0.9)) == "detections have 5 keypoints, the annotations 17"
    plain = annotation_file([annotation(1, 1, 2, [10, 10, 40, 40])], [1])
    assert reason(plain, right) == "no category of the annotations lists keypoints"
    few = keypoint_file([person(1, 1, [10, 10, 40, 40], points[:5])], [1], NAMES[:5])
    assert "5 keypoints" in (reason(few, with_points(points[:5], 0.9)) or "")
    two = copy.deepcopy(few)
    two["categories"][1]["keypoints"] = ["nose"]
    assert reason(two, right) == "the categories have different numbers of keypoints (1, 5)"


def test_wrong_sigmas_are_refused_and_wrong_keypoints_left_out() -> None:
    points = np.full((17, 3), 2.0)
    document = keypoint_file([person(8, 1, [10, 10, 40, 40], points)], [1])
    labels = label_table({1: found(with_points(points, 0.9))})
    with pytest.raises(ConfigError, match="keypoint sigmas: got 2 numbers, expected one for each of the 17 keypoints"):
        evaluate_coco(document, labels, keypoint_sigmas=(0.1, 0.2))
    document["annotations"][0]["keypoints"] = [1, 2]
    scores = evaluate_coco(document, labels)
    assert scores.stats["keypoints"][0] == -1  # an object without any
    assert scores.notes == (
        "1 annotation is mended in its keypoints: annotation 8 of image 1: keypoints: 2 numbers, expected 3 for each "
        "of the category's 17; left out",
    )


def test_names_of_the_numbers() -> None:
    assert stat_names("bbox") == stat_names("segm") == STAT_NAMES
    assert stat_names("keypoints") == KEYPOINT_STAT_NAMES
    assert (len(STAT_NAMES), len(KEYPOINT_STAT_NAMES)) == (12, 10)


@pytest.mark.parametrize("name", ["person_keypoints_val", "instances_and_keypoints_val"])
def test_real_annotations(shared_data: Path, name: str) -> None:
    """Ground truth moved by some pixels; of 80 categories, those of persons are scored."""
    from maskrcnn_core.config.model import Category
    from maskrcnn_core.records.labels import record_schema, records_to_table

    annotations = json.loads((shared_data / f"coco/annotations/{name}.json").read_text())
    random = np.random.default_rng(0)
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    records = []
    for image in annotations["images"]:
        detections = []
        for one in annotations["annotations"] * 2:
            if one["image_id"] != image["id"]:
                continue
            points = None
            if names[one["category_id"]] == "person":
                moved = np.array(one["keypoints"], float).reshape(17, 3)
                moved[:, :2] += random.normal(0, 0.03 * one["area"] ** 0.5, (17, 2))
                points = tuple(moved.ravel().tolist())
            score = round(float(random.random()), 1)
            detections.append(
                DetectionRecord(one["category_id"], names[one["category_id"]], score, tuple(one["bbox"]), None, points)
            )
        records.append(ImageRecord("ok", None, image["width"], image["height"], tuple(detections)))
    schema = record_schema([Category(key, name) for key, name in names.items()])
    ids = [image["id"] for image in annotations["images"]]
    labels = records_to_table(ids, [str(one) for one in ids], records, "model", schema)
    for engine in ENGINES:
        scores = evaluate_coco(annotations, labels, engine=engine)
        assert list(scores.stats["keypoints"]) == by_hand(annotations, labels)
        assert 0.2 < scores.stats["keypoints"][0] < 1
