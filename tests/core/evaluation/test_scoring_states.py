"""Parts of a scoring, merged, equal plain pycocotools on everything: all tables, both engines, whatever the parts."""

import contextlib
import copy
import io
import pickle
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.evaluation.keypoints import keypoint_categories, keypoint_objects
from maskrcnn_core.evaluation.results import coco_results
from maskrcnn_core.evaluation.scoring_engines import match_images
from maskrcnn_core.evaluation.scoring_states import Engine, IouType, ScoringRules, Tables, merge_states
from tests.core.evaluation.synthetic import annotation_file, detection, found, label_table, random_problem
from tests.core.evaluation.test_keypoints import random_problem as random_keypoints

KINDS: tuple[IouType, ...] = ("bbox", "segm", "keypoints")
ENGINES: tuple[Engine, ...] = ("hotcoco", "pycocotools")
IMAGES = 20


@lru_cache
def problem(kind: IouType, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]], Tables]:
    """Annotations, results and the tables that plain pycocotools makes of them."""
    if kind == "keypoints":
        annotations, labels = random_keypoints(seed)
        with_keypoints = keypoint_categories(annotations["categories"])
        annotations["annotations"] = keypoint_objects(annotations["annotations"], with_keypoints)
        annotations["categories"] = [one for one in annotations["categories"] if one["id"] in with_keypoints]
    else:
        annotations, labels = random_problem(seed, IMAGES)
        labels = pa.concat_tables([labels.filter(pa.compute.field("image_id") != 7), crowded(seed)])
    known = {image["id"] for image in annotations["images"]}
    categories = {category["id"] for category in annotations["categories"]}
    results = [
        one
        for one in coco_results(labels, kind)
        if one["image_id"] in known and (kind != "keypoints" or one["category_id"] in categories)
    ]
    return annotations, results, plain_pycocotools(annotations, results, kind)


def crowded(seed: int) -> pa.Table:
    """An image with more detections than count, many with equal scores."""
    random = np.random.default_rng(seed)
    boxes = np.maximum(random.normal((30, 30, 40, 40), 12, (130, 4)), 1).round(1).tolist()
    return label_table({7: found(*(detection(2, round(float(random.random()), 1), box) for box in boxes))})


def plain_pycocotools(annotations: dict[str, Any], results: list[dict[str, Any]], kind: IouType) -> Tables:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(annotations)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
    return Tables(*(evaluation.eval[name] for name in ("precision", "recall", "scores")))


def require_equal(one: Tables, other: Tables) -> None:
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def rules_for(kind: IouType, annotations: dict[str, Any], engine: Engine) -> ScoringRules:
    ids = tuple(sorted(category["id"] for category in annotations["categories"]))
    return ScoringRules(kind, ids, (20,) if kind == "keypoints" else (1, 10, 100), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 3), shards=st.integers(1, 17), assignment=st.randoms(use_true_random=False))
def test_any_parts_in_any_order(kind: IouType, engine: Engine, seed: int, shards: int, assignment: Any) -> None:
    annotations, results, expected = problem(kind, seed)
    rules = rules_for(kind, annotations, engine)
    home = {image["id"]: assignment.randrange(shards) for image in annotations["images"]}
    states = [
        match_images(
            rules,
            [image for image in annotations["images"] if home[image["id"]] == shard],
            [one for one in annotations["annotations"] if home[one["image_id"]] == shard],
            [one for one in results if home[one["image_id"]] == shard],
        )
        for shard in range(shards)
    ]
    assignment.shuffle(states)
    states = [pickle.loads(pickle.dumps(state)) for state in states]
    half = len(states) // 2
    tree = [merge_states(part) for part in (states[:half], states[half:]) if part]  # merging merged ones
    require_equal(merge_states(tree).finish(), expected)


def test_the_problems_have_what_they_are_meant_to_have() -> None:
    annotations, results, tables = problem("bbox", 0)
    areas = {one["area"] for one in annotations["annotations"]}
    assert {32.0**2, 96.0**2} <= areas
    assert any(one["iscrowd"] for one in annotations["annotations"])
    per_image = {image["id"]: sum(one["image_id"] == image["id"] for one in results) for image in annotations["images"]}
    assert max(per_image.values()) > 100
    assert min(per_image.values()) == 0
    assert len({one["score"] for one in results}) < len(results) / 5
    assert (tables.precision[:, :, 3] == -1).all()  # category 9 has no objects
    assert len(np.unique(tables.precision)) > 50


@pytest.mark.parametrize("engine", ENGINES)
def test_no_images_change_nothing(engine: Engine) -> None:
    annotations, results, expected = problem("segm", 1)
    rules = rules_for("segm", annotations, engine)
    nothing = match_images(rules, [], [], [])
    everything = match_images(rules, annotations["images"], annotations["annotations"], results)
    require_equal(merge_states([nothing, everything, nothing]).finish(), expected)
    assert (nothing.finish().precision == -1).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_equal_scores_across_parts_go_by_image_id(engine: Engine) -> None:
    """A right and a wrong detection with one score: precision at the first recall is 1 if the right one comes first."""
    right = {"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [10.0, 10.0, 40.0, 40.0]}
    wrong = {"image_id": 2, "category_id": 2, "score": 0.5, "bbox": [90.0, 10.0, 20.0, 20.0]}
    for first, second in ((right, wrong), (right | {"image_id": 2}, wrong | {"image_id": 1})):
        image = first["image_id"]
        objects = [{"id": 1, "image_id": image, "category_id": 2, "bbox": first["bbox"], "area": 1600.0}]
        rules = ScoringRules("bbox", (2,), (1, 10, 100), engine)
        parts = [
            match_images(rules, [{"id": one["image_id"]}], objects if one is first else [], [one])
            for one in (second, first)
        ]
        assert merge_states(parts).finish().precision[0, 0, 0, 0, 2] == pytest.approx(1.0 if image == 1 else 0.5)


def test_annotation_file_is_left_as_it_was() -> None:
    annotations = annotation_file([{"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5], "area": 25}], [1])
    before = copy.deepcopy(annotations)
    for engine in ENGINES:
        match_images(
            rules_for("bbox", annotations, engine), annotations["images"], annotations["annotations"], []
        ).finish()
    assert annotations == before


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_what_an_engine_says_is_one_line_of_ours(engine: Engine) -> None:
    rules = ScoringRules("bbox", (1,), (1, 10, 100), engine)
    images = [{"id": number, "width": 9, "height": 9} for number in (4, 7)]
    wrong = {"id": 1, "image_id": 4, "category_id": 1, "bbox": "x", "area": 1, "iscrowd": 0}
    found = [{"image_id": 4, "category_id": 1, "score": 0.5, "bbox": [0, 0, 1, 1]}]
    with pytest.raises(AnnotationError, match=r"^scoring bbox of 2 images \(4 to 7\): "):
        match_images(rules, images, [wrong], found)
