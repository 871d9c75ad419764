"""Both engines against plain pycocotools on random odd worlds, in shards merged in any order: every bit."""

import contextlib
import copy
import io
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_core.evaluation.annotations import read_document
from maskrcnn_core.evaluation.scoring_engines import match_images
from maskrcnn_core.evaluation.scoring_states import Engine, IouType, ScoringRules, Tables, merge_states

ENGINES: tuple[Engine, ...] = ("hotcoco", "pycocotools")
IMAGE_IDS = [0, 1, 2, 5, 17, 2**31 + 5, 2**40, 999, 12]
CATEGORY_IDS = [0, 1, 2, 3, 7, 90, 100_000]


@dataclass
class World:
    """Images, annotations and results, with everything odd that pycocotools has a number for."""

    kind: IouType
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    results: list[dict[str, Any]]
    category_ids: tuple[int, ...]
    limits: tuple[int, ...]


def random_world(seed: int) -> World:
    """Crowds of both spellings, equal scores and overlaps, empty masks and boxes, areas beyond every range."""
    rng = random.Random(seed)
    kind: IouType = rng.choice(["bbox", "segm"])
    sizes = [(rng.randint(1, 90), rng.randint(1, 90)) for _ in range(rng.randint(1, 5))]
    images = [
        {"id": image_id, "width": width, "height": height}
        for image_id, (width, height) in zip(rng.sample(IMAGE_IDS, len(sizes)), sizes, strict=True)
    ]
    category_ids = tuple(sorted(rng.sample(CATEGORY_IDS, rng.randint(1, 3))))
    annotations = [_annotation(rng, image, category_ids) for image in images for _ in range(rng.randint(0, 5))]
    ids = rng.sample([*range(1, 40), 2**40, 2**62], len(annotations))
    for annotation, annotation_id in zip(annotations, ids, strict=True):
        annotation["id"] = annotation_id
    rng.shuffle(annotations)
    results = [
        _result(rng, kind, image, annotations, category_ids) for image in images for _ in range(rng.randint(0, 14))
    ]
    rng.shuffle(results)
    return World(kind, images, annotations, results, category_ids, rng.choice([(1, 10, 100), (1, 2, 3), (1, 10, 300)]))


def _box(rng: random.Random, image: dict[str, Any]) -> list[float]:
    x, y = rng.uniform(-3, image["width"]), rng.uniform(-3, image["height"])
    w, h = (rng.choice([0, 0.5, 1e-7]) if rng.random() < 0.1 else rng.uniform(1, 60) for _ in "wh")
    return [x, y, w, h]


def _runs(rng: random.Random, image: dict[str, Any]) -> dict[str, Any]:
    mask = np.zeros((image["height"], image["width"]), np.uint8, order="F")
    for _ in range(rng.randint(0, 2)):
        y, x = rng.randrange(image["height"]), rng.randrange(image["width"])
        mask[y : y + rng.randint(1, 40), x : x + rng.randint(1, 40)] = 1
    runs: dict[str, Any] = coco_mask.encode(mask)
    return {**runs, "counts": runs["counts"].decode()}


def _annotation(rng: random.Random, image: dict[str, Any], category_ids: tuple[int, ...]) -> dict[str, Any]:
    x, y, w, h = box = _box(rng, image)
    crowd = {"iscrowd": rng.choice([1, True])} if rng.random() < 0.25 else rng.choice([{}, {"iscrowd": 0}])
    return {
        "image_id": image["id"],
        "category_id": rng.choice(category_ids),
        "bbox": box,
        "area": rng.choice([w * h, rng.uniform(0, 1e4), 1024, 9216, 0, -1, 1e11]),
        "segmentation": _runs(rng, image) if rng.random() < 0.6 else [[x, y, x + w, y, x + w, y + h]],
        **crowd,
    }


def _result(
    rng: random.Random,
    kind: IouType,
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    category_ids: tuple[int, ...],
) -> dict[str, Any]:
    near = [one for one in annotations if one["image_id"] == image["id"]]
    score = rng.choice([0.5, 0.25, rng.random(), 0.0, 1.0, -1.0, 1e-300, 7.0])
    result = {"image_id": image["id"], "category_id": rng.choice(category_ids), "score": score}
    if kind == "bbox":
        close = near and rng.random() < 0.6
        box = [v + rng.uniform(-2, 2) for v in rng.choice(near)["bbox"]] if close else _box(rng, image)
        return {**result, "bbox": box}
    masks = [one["segmentation"] for one in near if isinstance(one["segmentation"], dict)]
    return {**result, "segmentation": rng.choice(masks) if masks and rng.random() < 0.5 else _runs(rng, image)}


def by_pycocotools(world: World) -> Tables | None:
    """None where it has no results to load."""
    if not world.results:
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": world.images,
            "annotations": [{"iscrowd": 0} | copy.deepcopy(one) for one in world.annotations],
            "categories": [{"id": one} for one in world.category_ids],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(world.results)), world.kind)
        evaluation.params.maxDets = list(world.limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return Tables(*(evaluation.eval[name] for name in ("precision", "recall", "scores")))


def in_shards(world: World, engine: Engine, rng: random.Random) -> Tables:
    """Of two parts of the images, merged."""
    rules = ScoringRules(world.kind, world.category_ids, world.limits, engine)
    images = rng.sample(world.images, len(world.images))
    cut = rng.randint(0, len(images))
    states = []
    for part in (images[:cut], images[cut:]):
        ids = {image["id"] for image in part}
        chosen = (
            [copy.deepcopy(one) for one in entries if one["image_id"] in ids]
            for entries in (world.annotations, world.results)
        )
        states.append(match_images(rules, part, *chosen))
    return merge_states(states).finish()


def require_equal(one: Tables, other: Tables) -> None:
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def compare(seed: int) -> bool:
    """Whether the world has anything to compare."""
    world, rng = random_world(seed), random.Random(seed)
    expected = by_pycocotools(world)
    if expected is None:
        return False
    for engine in ENGINES:
        require_equal(in_shards(world, engine, rng), expected)
    return True


def compare_from_zero(seed: int) -> None:
    """Ids 0, 1, 2 .. give what ids 1, 2, 3 .. give."""
    world, rng = random_world(seed), random.Random(seed)
    for number, annotation in enumerate(world.annotations):
        annotation["id"] = number
    shifted = copy.deepcopy(world)
    for annotation in shifted.annotations:
        annotation["id"] += 1
    expected = by_pycocotools(shifted)
    for engine in ENGINES:
        if expected is not None:
            require_equal(in_shards(world, engine, rng), expected)


@pytest.mark.parametrize("seed", range(40))
def test_bit_equal_to_pycocotools(seed: int) -> None:
    compare(seed)


@pytest.mark.parametrize("seed", range(40))
def test_ids_from_zero(seed: int) -> None:
    compare_from_zero(seed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_two_thousand_worlds(part: int) -> None:
    seeds = range(500 * part, 500 * (part + 1))
    assert sum(compare(seed) for seed in seeds) > 450
    for seed in seeds[::5]:
        compare_from_zero(seed)


def test_the_worlds_are_odd() -> None:
    worlds = [random_world(seed) for seed in range(40)]
    annotations = [one for world in worlds for one in world.annotations]
    assert {one.get("iscrowd") for one in annotations} == {None, 0, 1}
    assert {0, -1, 1e11} <= {one["area"] for one in annotations}
    assert any(world.images[0]["id"] > 2**31 for world in worlds)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_sound_is_read_as_it_is(seed: int) -> None:
    """So that a file's numbers are pycocotools', too."""
    world = random_world(seed)
    for one in world.annotations:
        one["bbox"] = [abs(one["bbox"][0]) % 1, abs(one["bbox"][1]) % 1, *(max(v, 0.25) for v in one["bbox"][2:])]
        one["area"] = abs(one["area"])
        x, y, w, h = one["bbox"]
        if isinstance(one["segmentation"], list):
            one["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
    categories = [{"id": one, "name": str(one)} for one in world.category_ids]
    found = read_document({"images": world.images, "annotations": world.annotations, "categories": categories})
    assert not found.faults
    for clean, entry in zip(found.entries, world.annotations, strict=True):
        shape = clean.pop("segmentation")
        assert clean == {"iscrowd": 0, **{key: value for key, value in entry.items() if key != "segmentation"}}
        assert (shape if isinstance(shape, dict) else [list(part) for part in shape]) == entry["segmentation"]
