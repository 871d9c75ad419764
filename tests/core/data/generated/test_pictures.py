"""The generated data set: exactly COCO, exactly reproducible, and as varied as it says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from maskrcnn_core.config.person import PERSON_SKELETON
from maskrcnn_core.data.generated.person import PERSON_KEYPOINTS, person
from maskrcnn_core.data.generated.pictures import CATEGORIES, generate_dataset, generate_picture
from maskrcnn_core.data.generated.shapes import SHAPES, Figure, Part, place, rasterize
from maskrcnn_core.errors import ConfigError, StorageError

SIZE = (128, 192)
NUM_IMAGES = 120


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_dataset(tmp_path_factory.mktemp("set"), num_images=NUM_IMAGES, seed=4, image_size=SIZE)


@pytest.fixture(scope="module")
def document(dataset: Path) -> dict[str, Any]:
    return json.loads(dataset.read_text())


def test_same_seed_same_bytes_and_a_longer_set_begins_with_the_shorter(tmp_path: Path) -> None:
    short, again, longer, other = (tmp_path / name for name in ("short", "again", "longer", "other"))
    for folder, count, seed in ((short, 3, 7), (again, 3, 7), (longer, 5, 7), (other, 3, 8)):
        generate_dataset(folder, num_images=count, seed=seed, image_size=(64, 96))
    assert (short / "annotations.json").read_bytes() == (again / "annotations.json").read_bytes()
    first, more = (json.loads((folder / "annotations.json").read_text()) for folder in (short, longer))
    assert more["images"][:3] == first["images"]
    assert more["annotations"][: len(first["annotations"])] == first["annotations"]
    for image in first["images"]:
        pixels = (short / "images" / image["file_name"]).read_bytes()
        assert pixels == (again / "images" / image["file_name"]).read_bytes()
        assert pixels == (longer / "images" / image["file_name"]).read_bytes()
        assert pixels != (other / "images" / image["file_name"]).read_bytes()


def test_document_is_coco(dataset: Path, document: dict[str, Any]) -> None:
    assert list(document) == ["info", "licenses", "images", "annotations", "categories"]
    assert [(entry["id"], entry["name"]) for entry in document["categories"]] == [(c.id, c.name) for c in CATEGORIES]
    person_entry = document["categories"][0]
    assert person_entry["keypoints"] == list(PERSON_KEYPOINTS)
    assert person_entry["skeleton"] == [list(limb) for limb in PERSON_SKELETON]
    for kind in ("images", "annotations"):
        ids = [entry["id"] for entry in document[kind]]
        assert len(set(ids)) == len(ids)
    assert {entry["license"] for entry in document["images"]} <= {entry["id"] for entry in document["licenses"]}
    for image in document["images"]:
        with Image.open(dataset.parent / "images" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])
            assert opened.format == "JPEG"
        assert SIZE[0] <= min(image["width"], image["height"]) <= max(image["width"], image["height"]) <= SIZE[1]


def test_area_and_box_are_those_of_the_mask_as_pycocotools_draws_it(dataset: Path) -> None:
    coco = COCO(str(dataset))
    for annotation in coco.dataset["annotations"]:
        mask = coco.annToMask(annotation)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        assert annotation["bbox"] == [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
        assert annotation["area"] == mask.sum()


def test_visible_masks_share_no_pixel(dataset: Path) -> None:
    coco = COCO(str(dataset))
    overlapping_boxes = 0
    for image_id in coco.getImgIds():
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        if annotations:
            masks = np.stack([coco.annToMask(annotation) for annotation in annotations])
            assert masks.sum(axis=0).max() == 1
            boxes = [annotation["bbox"] for annotation in annotations]
            cover = np.zeros(masks.shape[1:], dtype=int)
            for x, y, width, height in boxes:
                cover[y : y + height, x : x + width] += 1
            overlapping_boxes += cover.max() > 1
    assert overlapping_boxes > NUM_IMAGES / 4


def test_the_set_holds_every_kind_of_annotation(document: dict[str, Any]) -> None:
    annotations = document["annotations"]
    single = [entry for entry in annotations if not entry["iscrowd"]]
    crowds = [entry for entry in annotations if entry["iscrowd"]]
    assert {entry["category_id"] for entry in single} == {category.id for category in CATEGORIES}
    assert any(isinstance(entry["segmentation"], list) for entry in single)
    assert any(isinstance(entry["segmentation"], dict) for entry in single)
    assert crowds
    assert all(isinstance(entry["segmentation"]["counts"], list) for entry in crowds)
    per_image = np.bincount([entry["image_id"] for entry in annotations], minlength=NUM_IMAGES + 1)[1:]
    assert per_image.min() == 0
    assert per_image.max() == 6
    ring_id = next(category.id for category in CATEGORIES if category.name == "ring")
    rings = [entry for entry in single if entry["category_id"] == ring_id]
    assert sum(isinstance(entry["segmentation"], dict) for entry in rings) > len(rings) / 3  # others are cut open


def test_masks_differ_clearly_from_boxes(document: dict[str, Any]) -> None:
    for category in CATEGORIES:
        entries = [a for a in document["annotations"] if a["category_id"] == category.id and not a["iscrowd"]]
        filled = np.array([entry["area"] / (entry["bbox"][2] * entry["bbox"][3]) for entry in entries])
        assert np.median(filled) < 0.5, category.name  # a box in place of the mask has IoU < 0.5
        assert filled.min() > 0.1, category.name


def test_keypoints_are_seen_hidden_or_outside(dataset: Path) -> None:
    coco = COCO(str(dataset))
    counts = np.zeros(3, dtype=int)
    for annotation in coco.loadAnns(coco.getAnnIds(catIds=[1], iscrowd=False)):
        points = np.array(annotation["keypoints"]).reshape(17, 3)
        mask = coco.annToMask(annotation)
        assert annotation["num_keypoints"] == (points[:, 2] > 0).sum()
        assert (points[points[:, 2] == 0] == 0).all()
        x, y, _ = points[points[:, 2] == 1].T
        assert not mask[y, x].any()  # something else is in front
        x, y, _ = points[points[:, 2] == 2].T
        assert mask[y, x].mean() > 0.9 if len(x) else True  # at small sizes a joint may touch the limb's edge
        counts += np.bincount(points[:, 2], minlength=3)
    assert (counts > 0).all()
    assert counts[2] > 3 * counts[:2].sum()
    assert all("keypoints" not in entry for entry in coco.dataset["annotations"] if entry["category_id"] != 1)


def test_the_persons_left_is_on_the_right_of_the_picture() -> None:
    joints = person(np.random.default_rng(0)).keypoints
    assert joints is not None
    for left in (1, 3, 5, 11):
        assert joints[left, 0] > joints[left + 1, 0], PERSON_KEYPOINTS[left]
    assert joints[0, 1] < joints[5, 1] < joints[11, 1] < joints[13, 1] < joints[15, 1]  # nose to ankle, downwards


def test_without_people(tmp_path: Path) -> None:
    path = generate_dataset(tmp_path, num_images=8, image_size=(64, 96), with_people=False)
    document = json.loads(path.read_text())
    assert {entry["name"] for entry in document["categories"]} == {"star", "ring", "cross"}
    assert document["annotations"]
    assert all(entry["category_id"] != 1 and "keypoints" not in entry for entry in document["annotations"])


def test_no_images(tmp_path: Path) -> None:
    document = json.loads(generate_dataset(tmp_path / "new", num_images=0).read_text())
    assert document["images"] == document["annotations"] == []
    assert len(document["categories"]) == 4


def test_start_id_numbers_the_images_and_changes_them(tmp_path: Path) -> None:
    document = json.loads(generate_dataset(tmp_path, num_images=2, image_size=(64, 64), start_id=50).read_text())
    assert [entry["id"] for entry in document["images"]] == [50, 51]
    assert {entry["image_id"] for entry in document["annotations"]} <= {50, 51}
    first, second = (generate_picture(image_id, image_size=(64, 64)).pixels for image_id in (1, 50))
    assert (first != second).any()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_images": -1}, "num_images"),
        ({"num_images": 1, "seed": -1}, "seed"),
        ({"num_images": 1, "start_id": -1}, "image id"),
        ({"num_images": 1, "image_size": (32, 64)}, "image_size"),
        ({"num_images": 1, "image_size": (96, 64)}, "image_size"),
    ],
)
def test_wrong_numbers_are_named(tmp_path: Path, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        generate_dataset(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    generate_dataset(tmp_path, num_images=1, image_size=(64, 64))
    with pytest.raises(StorageError, match="already holds"):
        generate_dataset(tmp_path, num_images=1, image_size=(64, 64))


def test_rasterize_halves_a_pixel_that_is_half_covered() -> None:
    # A rectangle over x 1..3.5, y 1..3: pixel columns 1, 2 are full, column 3 is half full.
    outline = np.array([[1.0, 1.0], [3.5, 1.0], [3.5, 3.0], [1.0, 3.0]])
    raster = rasterize(Figure("box", (Part(outline),)), 5, 6)
    assert raster is not None
    full = np.zeros((5, 6))
    full[raster.window] = raster.coverage
    np.testing.assert_allclose(full[1], [0, 1, 1, 0.5, 0, 0], atol=0.26)
    np.testing.assert_allclose(full[3], 0, atol=0.26)
    assert raster.full_area == pytest.approx(5, abs=1.1)


def test_rasterize_crops_to_the_picture_and_knows_the_full_area() -> None:
    ring = SHAPES["ring"](np.random.default_rng(0))
    whole = rasterize(place(ring, (30, 30), 40), 60, 60)
    half = rasterize(place(ring, (0, 30), 40), 60, 60)
    assert whole is not None
    assert half is not None
    assert half.left == 0
    assert half.full_area == whole.full_area
    assert half.coverage.sum() == pytest.approx(whole.coverage.sum() / 2, rel=0.03)
    assert whole.coverage[whole.coverage.shape[0] // 2, whole.coverage.shape[1] // 2] == 0  # the hole
    assert rasterize(place(ring, (-50, 30), 40), 60, 60) is None
