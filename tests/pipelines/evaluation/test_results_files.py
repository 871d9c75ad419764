"""Results files of other systems as they come: numbers where there are numbers, else one line that names the entry."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_core.errors import AnnotationError
from pipelines.evaluation.config import EvaluateConfig, EvaluateRun
from pipelines.evaluation.run import EvaluationSummary, evaluate

Entry = dict[str, Any]

HEIGHT, WIDTH = 64, 96
WAYS = {
    "plain": EvaluateConfig(),
    "details": EvaluateConfig(details=True, bootstrap_samples=2),
    "pycocotools": EvaluateConfig(engine="pycocotools"),
}


def rectangle(x: int, y: int, w: int = 30, h: int = 24) -> list[int]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def annotation_file() -> dict[str, Any]:
    """Four images, each with a red (1) and a blue (2) rectangle."""
    objects = [
        (image, category, 5 + image + 40 * (category - 1), 7 + image) for image in range(4) for category in (1, 2)
    ]
    return {
        "images": [{"id": n + 1, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(4)],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
        "annotations": [
            {
                "id": number,
                "image_id": image + 1,
                "category_id": category,
                "bbox": [x, y, 30, 24],
                "area": 720,
                "iscrowd": 0,
                "segmentation": [rectangle(x, y)],
            }
            for number, (image, category, x, y) in enumerate(objects, 1)
        ],
    }


def encoded(polygon: list[int]) -> Entry:
    (runs,) = coco_mask.frPyObjects([polygon], HEIGHT, WIDTH)
    return {"size": [HEIGHT, WIDTH], "counts": runs["counts"].decode()}


def good_results() -> list[Entry]:
    return [
        {
            "image_id": one["image_id"],
            "category_id": one["category_id"],
            "score": 0.9,
            "bbox": one["bbox"],
            "segmentation": encoded(one["segmentation"][0]),
        }
        for one in annotation_file()["annotations"]
    ]


def score(folder: Path, results: Any, way: str) -> EvaluationSummary:
    (folder / "val.json").write_text(json.dumps(annotation_file()))
    text = results if isinstance(results, str) else json.dumps(results)
    (folder / "results.json").write_text(text)
    run = EvaluateRun(str(folder / "results.json"), str(folder / "val.json"), evaluate=WAYS[way])
    return evaluate(run)


def pycocotools_ap(results: list[Entry], kind: str) -> float:
    """What pycocotools makes of the same two documents."""
    truth = COCO()
    truth.dataset = annotation_file()
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def changed(change: Callable[[list[Entry]], object]) -> list[Entry]:
    results = good_results()
    change(results)
    return results


def each(**fields: Any) -> Callable[[list[Entry]], object]:
    return lambda results: [one.update(fields) for one in results]


def first(**fields: Any) -> Callable[[list[Entry]], object]:
    return lambda results: results[0].update(fields)


def without(number: int, *keys: str) -> Callable[[list[Entry]], object]:
    return lambda results: [results[number].pop(key) for key in keys]


def to_corners(results: list[Entry]) -> None:
    for one in results:
        x, y, w, h = one["bbox"]
        one["bbox"] = [x, y, x + w, y + h]


def to_polygons(results: list[Entry]) -> None:
    for one in results:
        one["segmentation"] = [rectangle(*one["bbox"])]


def uncompressed(results: list[Entry]) -> None:
    x, y, w, h = results[0]["bbox"]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0, append=0))
    counts = np.diff([0, *edges.tolist(), mask.size]).tolist()
    results[0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [float(run) for run in counts]}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (lambda results: None, ("bbox", "segm")),
        (lambda results: [one.pop("bbox") for one in results], ("bbox", "segm")),
        (lambda results: [one.pop("segmentation") for one in results], ("bbox",)),
        (without(0, "bbox"), ("bbox", "segm")),
        (without(3, "segmentation"), ("bbox", "segm")),
        (without(0, "segmentation"), ("bbox", "segm")),
        (to_polygons, ("bbox", "segm")),
        (uncompressed, ("bbox", "segm")),
        (first(category_id=99), ("bbox", "segm")),
        (first(image_id=999), ("bbox", "segm")),
        (first(bbox=[30, 30, -10, -10]), ("bbox", "segm")),
        (to_corners, ("bbox", "segm")),
    ],
)
def test_pycocotools_numbers_of_what_it_can_read(
    change: Callable[[list[Entry]], object], kinds: tuple[str, ...], way: str, tmp_path: Path
) -> None:
    results = changed(change)
    summary = score(tmp_path, results, way)
    assert set(summary.scores.stats) == set(kinds)
    known = [one for one in results if one["image_id"] != 999]
    for kind in kinds:
        assert summary.scores.stats[kind][0] == pycocotools_ap(known, kind)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (each(category_id=1.0), None),
        (first(image_id=1.0, category_id=1.0), None),
        (without(2, "bbox"), None),  # pycocotools cannot read it; the box of its mask
        (first(bbox=[]), None),
        (first(bbox=None), None),
        (first(segmentation={}), "detections without a mask: 1; as in pycocotools their box counts as one"),
        (without(3, "segmentation"), "detections without a mask: 1; as in pycocotools their box counts as one"),
        (lambda results: results.clear(), "there are no detections"),
        (to_corners, "all would lie inside as x1, y1, x2, y2"),
        (first(bbox=[30, 30, -10, -10]), "boxes of a negative width or height: 1"),
        (
            lambda results: [one.update(category_id=one["category_id"] - 1) for one in results],
            "if they count from 0, add 1 to each",
        ),
        (each(bbox=[0.1, 0.1, 0.3, 0.4]), "all boxes lie within one pixel"),
    ],
)
def test_odd_results_have_numbers_and_a_note(
    change: Callable[[list[Entry]], object], expected: str | None, way: str, tmp_path: Path
) -> None:
    summary = score(tmp_path, changed(change), way)
    assert len(summary.notes) == (expected is not None)
    assert expected is None or expected in summary.notes[0]
    assert "bbox" in summary.scores.stats
    assert json.dumps(summary.to_json())


FAULTS = [
    (first(score=float("nan")), "has score nan, expected a finite number"),
    (each(score=float("nan")), "has score nan"),
    (first(score=float("inf")), "has score inf"),
    (first(score=10**400), "has score 1000"),
    (first(score="0.9"), "has score '0.9'"),
    (first(score=True), "has score True"),
    (first(score=None), "has score None"),
    (without(0, "score"), "has score None"),
    (first(image_id="1"), "has image_id '1', expected a whole number"),
    (first(image_id=1.5), "has image_id 1.5"),
    (first(image_id=1 << 70), "has image_id 1180"),
    (first(category_id=None), "has category_id None"),
    (first(category_id=[1]), r"has category_id \[1\]"),
    (first(bbox=[5, 7, 30]), r"has bbox \[5, 7, 30\], expected four finite numbers"),
    (first(bbox=["5", 7, 30, 24]), "has bbox"),
    (first(bbox="5,7,30,24"), "has bbox"),
    (first(bbox={"x": 5}), "has bbox"),
    (first(bbox=[5, 7, float("nan"), 24]), "has bbox"),
    (first(bbox=[5, 7, 1e300, 24]), "has bbox"),
    (first(bbox=[5, 7, None, 24]), "has bbox"),
    (first(keypoints=[1, 2]), "has keypoints"),
    (first(keypoints=[1, None, 2]), "has keypoints"),
    (first(keypoints=5), "has keypoints"),
    (
        lambda results: results[0].update(segmentation={**encoded(rectangle(5, 7)), "size": [128, 192]}),
        r"mask of size \[12",
    ),
    (lambda results: results[0].update(segmentation={**encoded(rectangle(5, 7)), "size": [96, 64]}), "turn it round"),
    (lambda results: results[0].update(segmentation={**encoded(rectangle(5, 7)), "size": [-64, -96]}), "mask of size"),
    (lambda results: results[0].update(segmentation={**encoded(rectangle(5, 7)), "size": [64]}), "mask of size"),
    (lambda results: results[0].update(segmentation={**encoded(rectangle(5, 7)), "size": None}), "mask of size None"),
    (first(segmentation={"size": [HEIGHT, WIDTH], "counts": "0T"}), "text that ends within a number"),
    (first(segmentation={"size": [HEIGHT, WIDTH], "counts": "0ä€"}), "outside COCO's alphabet"),
    (first(segmentation={"size": [HEIGHT, WIDTH], "counts": "\ud800"}), "outside COCO's alphabet"),
    (first(segmentation={"size": [HEIGHT, WIDTH], "counts": ""}), "no runs"),
    (first(segmentation={"size": [HEIGHT, WIDTH], "counts": "0N"}), "a run below 0"),
    (first(segmentation={"size": [HEIGHT, WIDTH], "counts": "0" + "T" * 40 + "0"}), "more than 35 bits"),
    (first(segmentation={"size": [HEIGHT, WIDTH], "counts": [0, 10**9]}), "run lengths of 1000000000 pixels"),
    (first(segmentation={"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH + 5, -5]}), "whole numbers from 0 on"),
    (first(segmentation={"size": [HEIGHT, WIDTH], "counts": [0.5, HEIGHT * WIDTH - 0.5]}), "whole numbers from 0 on"),
    (first(segmentation={"size": [HEIGHT, WIDTH], "counts": ["1"]}), "whole numbers from 0 on"),
    (first(segmentation={"size": [HEIGHT, WIDTH]}), "run lengths None"),
    (first(segmentation=[[5, 7, 35, 7]]), "polygons of 6 finite numbers or more"),
    (first(segmentation=[[]]), "polygons of 6 finite numbers or more"),
    (first(segmentation=[5, 7, 35, 7, 35, 31]), "polygons of 6 finite numbers or more"),
    (first(segmentation=[[5, 7, 35, 7, 35, 31, 8]]), "polygons of 6 finite numbers or more"),
    (first(segmentation=[[5, 7, 35, 7, float("nan"), 31]]), "polygons of 6 finite numbers or more"),
    (first(segmentation=[[5, 7, 35, 7, 1e308, 31]]), r"a polygon that reaches from 5 to 1e\+308"),
    (first(segmentation=[[5, 7, 35, 7, -(2**31), 31]]), "a polygon that reaches"),
    (first(segmentation=[[0, 0, 95, 63, *[0, 63, 95, 0] * 30000]]), "pixels around"),
    (first(segmentation="text"), "has segmentation 'text'"),
    (without(5, "bbox", "segmentation"), "has neither bbox nor segmentation nor keypoints"),
    (lambda results: results.__setitem__(0, []), r"is \[\]"),
    (lambda results: results.__setitem__(0, None), "is None; expected COCO's results format"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("change", "expected"), FAULTS)
def test_a_fault_is_one_line_that_names_the_entry(
    change: Callable[[list[Entry]], object], expected: str, way: str, tmp_path: Path
) -> None:
    with pytest.raises(AnnotationError, match=expected) as caught:
        score(tmp_path, changed(change), way)
    assert "result number" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_entry_is_named_by_its_place_among_all(tmp_path: Path) -> None:
    for change, number in (
        (lambda results: results[6].update(score="x"), 7),
        (lambda r: r[6]["segmentation"].pop("size"), 7),
    ):
        with pytest.raises(AnnotationError, match=rf"result number {number} \(image 4\)"):
            score(tmp_path, changed(change), "plain")


@pytest.mark.parametrize("text", ["", "{", "[1, ", "[[[[[", "nul", '{"a": 1}', "[] []"])
def test_what_is_no_list_of_results_is_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"results\.json"):
        score(tmp_path, text, "plain")


def test_a_results_file_without_masks_in_one_shard_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether masks are scored is a matter of the file, not of the images that happen to come together."""
    monkeypatch.setattr("pipelines.evaluation.inputs._RESULT_BYTES_PER_SHARD", 400)
    results = changed(lambda results: [results[n].pop("segmentation") for n in (0, 1)])  # both of image 1
    summary = score(tmp_path, results, "plain")
    assert summary.scores.stats["segm"][0] == pycocotools_ap(results, "segm")
