"""Scoring from files, in this process and as Ray tasks on three nodes: plain pycocotools' numbers in every bit."""

import contextlib
import copy
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import pipelines.labelling.run
from maskrcnn_core.errors import AnnotationError, ConfigError
from maskrcnn_core.evaluation.coco import CocoScores, evaluate_coco
from maskrcnn_core.evaluation.results import coco_results
from maskrcnn_core.evaluation.scoring_states import Engine, IouType
from pipelines import storage
from pipelines.evaluation import inputs, shards
from pipelines.evaluation.config import EvaluateConfig, EvaluateRun
from pipelines.evaluation.run import evaluate
from pipelines.labelling.config import LabelConfig, LabelRun
from tests.core.evaluation.synthetic import HEIGHT, WIDTH, random_problem
from tests.core.evaluation.test_keypoints import random_problem as random_keypoints

ENGINES: tuple[Engine, ...] = ("hotcoco", "pycocotools")
IMAGES = 40


def reference(annotations: dict[str, Any], results: list[dict[str, Any]], kind: IouType) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(annotations)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.eval | {"stats": evaluation.stats}


def require_equal(scores: CocoScores, expected: dict[str, Any], kind: IouType) -> None:
    assert scores.stats[kind] == tuple(expected["stats"].tolist())
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(scores.tables[kind], name), expected[name], err_msg=f"{kind} {name}")


def known_results(annotations: dict[str, Any], labels: Any, kind: IouType) -> list[dict[str, Any]]:
    known = {image["id"] for image in annotations["images"]}
    return [one for one in coco_results(labels, kind) if one["image_id"] in known]


def write_run(folder: Path, seed: int = 5) -> tuple[dict[str, Any], Any, EvaluateRun]:
    """Labels in several files and row groups, in no order, and annotations in an order of their own."""
    annotations, labels = random_problem(seed, IMAGES)
    random = np.random.default_rng(seed)
    labels = labels.take(random.permutation(len(labels)))
    random.shuffle(annotations["images"])
    (folder / "labels").mkdir(parents=True)
    for part, (start, stop) in enumerate([(0, 11), (11, 12), (12, len(labels))]):
        pq.write_table(labels.slice(start, stop - start), folder / f"labels/{part}.parquet", row_group_size=4)
    # annotations before images: some writers do so
    document = {key: annotations[key] for key in ("annotations", "categories", "images")}
    (folder / "val.json").write_text(json.dumps({"info": {"year": 2026}, **document}))
    return annotations, labels, EvaluateRun(labels=str(folder), annotations=str(folder / "val.json"))


def settings(run: EvaluateRun, **changes: Any) -> EvaluateRun:
    return EvaluateRun(labels=run.labels, annotations=run.annotations, evaluate=EvaluateConfig(**changes))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("images_per_shard", [1, 9, 1000])
def test_files_equal_pycocotools(
    tmp_path: Path, engine: Engine, images_per_shard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_HELD_BYTES", 5000)
    monkeypatch.setattr(shards, "_ROWS_AT_ONCE", 3)
    annotations, labels, run = write_run(tmp_path)
    scores = evaluate(settings(run, engine=engine, images_per_shard=images_per_shard)).scores
    assert scores == evaluate_coco(annotations, labels, engine=engine)
    for kind in ("bbox", "segm"):
        require_equal(scores, reference(annotations, known_results(annotations, labels, kind), kind), kind)


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[None]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray's own, on starting nodes
def test_tasks_on_three_nodes_equal_pycocotools(tmp_path: Path, three_nodes: None) -> None:
    assert len([node for node in ray.nodes() if node["Alive"]]) == 3
    annotations, labels, run = write_run(tmp_path)
    for engine in ENGINES:
        scores = evaluate(settings(run, engine=engine, images_per_shard=4, distributed="always")).scores
        for kind in ("bbox", "segm"):
            require_equal(scores, reference(annotations, known_results(annotations, labels, kind), kind), kind)
    points, found = random_keypoints(3)
    (tmp_path / "people.json").write_text(json.dumps(points))
    pq.write_table(found, tmp_path / "people.parquet", row_group_size=2)
    people = EvaluateRun(labels=str(tmp_path / "people.parquet"), annotations=str(tmp_path / "people.json"))
    scores = evaluate(settings(people, images_per_shard=2)).scores  # distributed, because Ray is in use
    expected = evaluate_coco(points, found)
    assert scores == expected
    np.testing.assert_array_equal(scores.tables["keypoints"].precision, expected.tables["keypoints"].precision)
    annotations["annotations"][0]["category_id"] = 99
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    with pytest.raises(AnnotationError, match="category_id 99 is not in section 'categories'"):
        evaluate(run)


def runs_of(rle: dict[str, Any]) -> list[int]:
    """Uncompressed run lengths."""
    pixels = coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()}).ravel(order="F")
    ends = np.flatnonzero(np.diff(pixels, append=1 - pixels[-1])) + 1
    return ([0] if pixels[0] else []) + np.diff(ends, prepend=0).tolist()


def with_boxes(results: list[dict[str, Any]], boxes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one | {"bbox": box["bbox"]} for one, box in zip(results, boxes, strict=True)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", ["boxes", "masks", "masks and boxes", "polygons and boxes", "runs and boxes"])
def test_results_of_another_system(tmp_path: Path, engine: Engine, shape: str) -> None:
    """pycocotools' numbers with all its ways: the area of the box files the mask, where there is one."""
    annotations, labels, run = write_run(tmp_path)
    boxes, masks = (known_results(annotations, labels, kind) for kind in ("bbox", "segm"))
    results = {"boxes": boxes, "masks": masks}.get(shape) or with_boxes(masks, boxes)
    if shape == "polygons and boxes":
        for one in results:
            x, y, w, h = one["bbox"]
            one["segmentation"] = [[x, y, x + w, y, x + w / 2, y + h]]
    if shape == "runs and boxes":
        results = [
            one | {"segmentation": {"size": [HEIGHT, WIDTH], "counts": runs_of(one["segmentation"])}} for one in results
        ]
    (tmp_path / "results.json").write_text(json.dumps(results, indent=1))
    run = EvaluateRun(labels=str(tmp_path / "results.json"), annotations=run.annotations)
    scores = evaluate(settings(run, engine=engine)).scores
    kinds: tuple[IouType, ...] = ("bbox",) if shape == "boxes" else ("bbox", "segm")
    assert set(scores.stats) == set(kinds)
    for kind in kinds:
        require_equal(scores, reference(annotations, results, kind), kind)
    assert (scores.coverage.labelled, scores.coverage.unlabelled, scores.detections) == (IMAGES, 0, len(results))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("boxed", [False, True])
def test_keypoint_results_of_another_system(tmp_path: Path, engine: Engine, boxed: bool) -> None:
    annotations, labels = random_keypoints(4)
    names = next(one["keypoints"] for one in annotations["categories"] if "keypoints" in one)
    annotations["categories"] = [{"id": 2, "name": "person", "keypoints": names}]
    annotations["annotations"] = [one for one in annotations["annotations"] if one["category_id"] == 2]
    results = [one for one in known_results(annotations, labels, "keypoints") if one["category_id"] == 2]
    if boxed:
        results = [one | {"bbox": [10.0, 10.0, 40.0, 40.0 + 30 * (n % 3)]} for n, one in enumerate(results)]
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    (tmp_path / "results.json").write_text(json.dumps(results))
    run = EvaluateRun(labels=str(tmp_path / "results.json"), annotations=str(tmp_path / "val.json"))
    scores = evaluate(settings(run, engine=engine)).scores
    for annotation in annotations["annotations"]:
        annotation.setdefault("keypoints", [0] * 51)
        annotation.setdefault("num_keypoints", 0)
    require_equal(scores, reference(annotations, results, "keypoints"), "keypoints")


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([], None),
        ({"images": []}, "holds an object; expected a list"),
        ([7], "result number 1 is 7; expected COCO's results format"),
        ([{"image_id": 1, "category_id": 2}], r"result number 1 \(image 1\) has score None, expected a finite number"),
        ([{"image_id": 1, "category_id": 2, "score": 0.5}], "the first result has no bbox, segmentation or keypoints"),
        (
            [{"image_id": 999, "category_id": 2, "score": 1, "bbox": [0, 0, 1, 1]}],
            "none of the results has an image id",
        ),
    ],
)
def test_results_that_are_none(tmp_path: Path, results: Any, expected: str | None) -> None:
    _, _, run = write_run(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results))
    run = EvaluateRun(labels=str(tmp_path / "results.json"), annotations=run.annotations)
    if expected is None:
        assert evaluate(run).scores.stats["bbox"][0] == 0
    else:
        with pytest.raises(AnnotationError, match=expected):
            evaluate(run)


def test_only_labelled_images(tmp_path: Path) -> None:
    """Image 3 has no row and image 4 failed: without them the numbers are those of a file without them."""
    annotations, labels, run = write_run(tmp_path)
    everything, labelled = (evaluate(settings(run, images=which)) for which in ("all", "labelled"))
    assert everything.scores.coverage.without_labels == labelled.scores.coverage.without_labels == (3, 4)
    assert (everything.scores.coverage.left_out, labelled.scores.coverage.left_out) == (0, 2)
    assert labelled.to_json()["images_without_labels"] == [3, 4]
    small = annotations | {
        "images": [one for one in annotations["images"] if one["id"] not in (3, 4)],
        "annotations": [one for one in annotations["annotations"] if one["image_id"] not in (3, 4)],
    }
    assert labelled.scores.stats == evaluate_coco(small, labels).stats != everything.scores.stats
    assert labelled.scores.annotations == len([one for one in small["annotations"] if not one["iscrowd"]])


@pytest.mark.parametrize("engine", ENGINES)
def test_ids_from_zero_give_the_numbers_of_ids_from_one(tmp_path: Path, engine: Engine) -> None:
    annotations, _, run = write_run(tmp_path)
    expected = evaluate(settings(run, engine=engine, details=True, bootstrap_samples=2)).to_json()
    for one in annotations["annotations"]:
        one["id"] -= 1
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    found = evaluate(settings(run, engine=engine, details=True, bootstrap_samples=2)).to_json()
    assert "an annotation has the id 0" in found["notes"].pop(0)
    assert found == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda a: a.pop("images"), "section 'images': got no such section"),
        (lambda a: a["images"].append(a["images"][0]), "listed twice"),
        (lambda a: a["images"].append({"id": "x"}), "image at position 40: id 'x', expected a whole number"),
        (lambda a: a["annotations"][0].update(category_id=99), "annotation 1: category_id 99 is not in section"),
        (lambda a: a["annotations"].append(a["annotations"][0]), "annotation 1: duplicate id"),
        (lambda a: a["annotations"].append(5), "annotation at position 132: got 5, expected an object"),
        (lambda a: [one.update(image_id=999) for one in a["annotations"]], "and neither is any other's"),
    ],
)
def test_a_wrong_annotation_file_is_named(tmp_path: Path, change: Any, expected: str) -> None:
    annotations, _, run = write_run(tmp_path)
    change(annotations)
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    with pytest.raises(AnnotationError, match=rf"^scoring .*{expected}"):
        evaluate(run)


def test_results_on_s3(tmp_path: Path, s3_folder: str) -> None:
    annotations, labels, _ = write_run(tmp_path)
    results = known_results(annotations, labels, "bbox")
    storage.write_bytes_atomically(f"{s3_folder}/results.json", json.dumps(results).encode())
    storage.write_bytes_atomically(f"{s3_folder}/val.json", (tmp_path / "val.json").read_bytes())
    scores = evaluate(EvaluateRun(labels=f"{s3_folder}/results.json", annotations=f"{s3_folder}/val.json")).scores
    require_equal(scores, reference(annotations, results, "bbox"), "bbox")


@pytest.mark.parametrize("kept", [False, True])
def test_from_a_checkpoint_the_annotated_images_are_labelled_first(
    tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations, labels, run = write_run(tmp_path)
    asked: list[LabelRun] = []

    def label(wanted: LabelRun, *_: Any, **__: Any) -> None:
        asked.append(wanted)
        (Path(wanted.output) / "labels").mkdir(parents=True)
        pq.write_table(labels, Path(wanted.output) / "labels/a.parquet")

    monkeypatch.setattr(pipelines.labelling.run, "label", label)
    output = str(tmp_path / "made") if kept else ""
    fresh = EvaluateRun(
        output, run.annotations, checkpoint="model", images="pictures", label=LabelConfig(min_score=0.1)
    )
    assert evaluate(fresh).scores == evaluate_coco(annotations, labels)
    (wanted,) = asked
    assert (wanted.checkpoint, wanted.images, wanted.image_root) == ("model", run.annotations, "pictures")
    assert wanted.label.min_score == 0.1
    assert Path(wanted.output).exists() is kept


def test_details_and_comparison_through_files(tmp_path: Path) -> None:
    _, _, run = write_run(tmp_path)
    few = EvaluateConfig(details=True, bootstrap_samples=5)
    summary = evaluate(EvaluateRun(run.labels, run.annotations, compare=run.labels, evaluate=few)).to_json()
    assert set(summary["details"]) == set(summary["comparison"]) == {"bbox", "segm"}
    assert summary["details"]["bbox"]["ap_per_size"]["all"] == pytest.approx(summary["stats"]["bbox"][0])
    assert summary["comparison"]["segm"]["difference"]["value"] == 0
    plain = evaluate(run).to_json()
    assert "details" not in plain
    assert "comparison" not in plain


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "missing --labels, --annotations"),
        ({"labels": "a"}, "missing --annotations"),
        ({"checkpoint": "model"}, "missing --annotations"),
        ({"labels": "a", "annotations": "b", "images": "c"}, "images: got 'c', expected nothing without --checkpoint"),
    ],
)
def test_what_is_missing(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        EvaluateRun(**given)
