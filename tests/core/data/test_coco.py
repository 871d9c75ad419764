"""Reading annotation files, and the message for each thing that can be wrong with one."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_core.data.coco import load_coco
from maskrcnn_core.errors import AnnotationError, StorageError

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]


def document() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "b.jpg", "width": 20, "height": 10},
            {"id": 3, "file_name": "a.jpg", "width": 8, "height": 8},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 1, 4, 4], "area": 16, "segmentation": [SQUARE]},
            {
                "id": 2,
                "image_id": 7,
                "category_id": 4,
                "bbox": [15, -2, 10, 6],
                "iscrowd": 1,
                "segmentation": {"size": [10, 20], "counts": [150, 4, 46]},
            },
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], str]:
    def write_json(content: Any) -> str:
        path = tmp_path / "instances.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write_json


def test_what_is_read(write: Callable[[Any], str]) -> None:
    dataset = load_coco(write(document()), require_masks=True)
    assert [(category.id, category.name) for category in dataset.categories] == [(4, "cat"), (9, "dog")]
    assert dataset.label_of == {4: 0, 9: 1}
    assert [(image.image_id, image.width, image.height) for image in dataset.images] == [(7, 20, 10), (3, 8, 8)]
    dog, cat = dataset.images[0].objects
    assert (dog.annotation_id, dog.category_id, dog.box, dog.area, dog.crowd) == (
        1,
        9,
        (1.0, 1.0, 5.0, 5.0),
        16.0,
        False,
    )
    assert [list(polygon) for polygon in dog.segmentation or ()] == [SQUARE]
    assert (cat.box, cat.crowd, cat.area) == ((15.0, 0.0, 20.0, 4.0), True, 20.0)  # clipped to the image
    assert dataset.images[1].objects == ()
    assert dataset.dropped == ()


def test_a_uri_is_read_as_a_path(write: Callable[[Any], str]) -> None:
    path = write(document())
    assert load_coco(f"file://{path}", require_masks=True) == load_coco(path, require_masks=True)


def test_missing_file(tmp_path: Path) -> None:
    for path in (f"{tmp_path}/no.json", f"file://{tmp_path}/no.json"):
        with pytest.raises(StorageError, match=r"no\.json: no such file"):
            load_coco(path, require_masks=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[]", "a list is a COCO results file"),
        ({"images": [], "annotations": []}, "section 'categories': got no such section"),
        ({"images": {}, "annotations": [], "categories": []}, "section 'images': got something else"),
        ({"images": [], "annotations": [1], "categories": []}, "section 'annotations': got something else"),
        ({"images": [], "annotations": [], "categories": []}, "'categories' is empty"),
    ],
)
def test_broken_file(write: Callable[[Any], str], content: Any, message: str) -> None:
    path = write(content)
    with pytest.raises(AnnotationError, match=message) as caught:
        load_coco(path, require_masks=False, on_fault="drop")
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize(
    ("section", "position", "change", "message"),
    [
        ("images", 1, {"id": 7}, "image 7: duplicate id"),
        ("images", 0, {"id": "7"}, "id '7', expected a whole number"),
        ("images", 0, {"width": 0}, "image 7: width 0"),
        ("images", 0, {"file_name": None}, "image 7: file_name None"),
        ("categories", 0, {"id": 4}, "category 4: duplicate id"),
        ("categories", 0, {"name": None}, "category 9: name None"),
        ("annotations", 1, {"id": 1}, "annotation 1: duplicate id"),
        ("annotations", 0, {"image_id": 99}, "annotation 1: image_id 99 is not in section 'images'"),
        ("annotations", 0, {"category_id": 5}, "annotation 1: category_id 5 is not in section 'categories'"),
    ],
)
def test_faults_that_always_raise(
    write: Callable[[Any], str], section: str, position: int, change: dict[str, Any], message: str
) -> None:
    content = document()
    content[section][position] |= change
    with pytest.raises(AnnotationError, match=message):
        load_coco(write(content), require_masks=True, on_fault="drop")


FAULTS = [
    ({"bbox": [1, 1, 0, 4]}, "has no extent"),
    ({"bbox": [1, 1, 4, -4]}, "has no extent"),
    ({"bbox": [1, 1, float("nan"), 4]}, "four finite numbers"),
    ({"bbox": [1, 1, 4]}, "four finite numbers"),
    ({"bbox": None}, "four finite numbers"),
    ({"bbox": [20, 1, 4, 4]}, "outside its image of 20 x 10"),
    ({"area": -1}, "area -1"),
    ({"iscrowd": 2}, "iscrowd 2"),
    ({"segmentation": [[1, 1, 5, 1]]}, "a polygon of 4 numbers"),
    ({"segmentation": [SQUARE, [1, 1, 5, 1, 5, 5, 1]]}, "a polygon of 7 numbers"),
    ({"segmentation": [[1, 1, 5, 1, float("inf"), 5]]}, "finite numbers"),
    ({"segmentation": "x"}, "of type str"),
    ({"segmentation": []}, "no segmentation"),
    ({"segmentation": {"size": [20, 10], "counts": [200]}}, r"size \[20, 10\], expected"),
    ({"segmentation": {"size": [10, 20], "counts": [150]}}, "malformed run lengths"),
    ({"keypoints": [1, 1, 2]}, "3 numbers, expected 3 for each of the category's 0"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_faults_of_one_annotation(write: Callable[[Any], str], change: dict[str, Any], message: str) -> None:
    content = document()
    content["annotations"][0] |= change
    path = write(content)
    with pytest.raises(AnnotationError, match=message) as caught:
        load_coco(path, require_masks=True)
    assert str(caught.value).startswith(f"{path}: annotation 1 of image 7: ")
    assert "To mend: " in str(caught.value)
    dropping = load_coco(path, require_masks=True, on_fault="drop")
    assert [item.annotation_id for item in dropping.images[0].objects] == [2]
    assert len(dropping.dropped) == 1


def test_boxes_alone_are_enough_without_masks(write: Callable[[Any], str]) -> None:
    content = document()
    del content["annotations"][0]["segmentation"]
    assert load_coco(write(content), require_masks=False).images[0].objects[0].segmentation is None


def test_the_first_faults_are_shown_and_the_rest_counted(write: Callable[[Any], str]) -> None:
    content = document()
    bad = content["annotations"][0] | {"bbox": [0, 0, 0, 0]}
    content["annotations"] = [copy.copy(bad) | {"id": number} for number in range(17)]
    with pytest.raises(AnnotationError, match=r"annotation 4 .*\.\.\. and 12 more") as caught:
        load_coco(write(content), require_masks=True)
    assert "annotation 5 " not in str(caught.value)
    assert len(load_coco(write(content), require_masks=True, on_fault="drop").dropped) == 17


def test_keypoints(write: Callable[[Any], str]) -> None:
    content = document()
    content["categories"][0]["keypoints"] = ["left_eye", "right_eye"]
    content["annotations"][0]["keypoints"] = [1, 2, 2, 0, 0, 0]
    dataset = load_coco(write(content), require_masks=True)
    assert dataset.keypoint_names == ("left_eye", "right_eye")
    assert dataset.keypoint_categories == ("dog",)
    assert [item.keypoints for item in dataset.images[0].objects] == [(1.0, 2.0, 2.0, 0.0, 0.0, 0.0), None]


KEYPOINT_FAULTS = [
    ([1, 2, 3, 0, 0, 0], "visibility 3 of keypoint 0, expected 0, 1 or 2"),
    ([1, 2, 2, 0, 0, 0.5], "visibility 0.5 of keypoint 1"),
    ([1, 2, 2, 0, 0], r"5 numbers, expected a multiple of 3 \(x, y, visibility\)"),
    ([1, 2, 2], "3 numbers, expected 3 for each of the category's 2"),
    ([1, 2, 2, 0, float("nan"), 1], "expected finite numbers"),
    ("1,2,2", "expected finite numbers"),
]


@pytest.mark.parametrize(("keypoints", "message"), KEYPOINT_FAULTS)
def test_faults_of_keypoints_name_the_annotation(write: Callable[[Any], str], keypoints: Any, message: str) -> None:
    content = document()
    content["categories"][0]["keypoints"] = ["left_eye", "right_eye"]
    content["annotations"][0]["keypoints"] = keypoints
    path = write(content)
    with pytest.raises(AnnotationError, match=f"annotation 1 of image 7: keypoints: .*{message}"):
        load_coco(path, require_masks=True)
    assert len(load_coco(path, require_masks=True, on_fault="drop").dropped) == 1


@pytest.mark.parametrize("names", ["eye", ["eye", "eye"], {"eye": 1}])
def test_a_category_with_a_wrong_list_of_keypoints(write: Callable[[Any], str], names: Any) -> None:
    content = document()
    content["categories"][0]["keypoints"] = names
    with pytest.raises(AnnotationError, match=r"category 9: keypoints .*, expected a list of different names"):
        load_coco(write(content), require_masks=True)


def test_two_lists_of_keypoints_in_a_file(write: Callable[[Any], str]) -> None:
    content = document()
    content["categories"][0]["keypoints"], content["categories"][1]["keypoints"] = ["eye"], ["ear"]
    with pytest.raises(AnnotationError, match="categories have different lists of keypoints"):
        load_coco(write(content), require_masks=True)


@pytest.mark.parametrize(
    ("name", "images", "objects", "categories", "keypoints"),
    [
        ("coco/annotations/instances_train.json", 92, 829, 80, 0),
        ("coco/annotations/instances_val.json", 44, 362, 80, 0),
        ("coco/annotations/instances_and_keypoints_train.json", 39, 407, 80, 17),
        ("coco/annotations/instances_and_keypoints_val.json", 34, 226, 80, 17),
        ("coco/annotations/person_keypoints_train.json", 125, 125, 1, 17),
        ("coco/annotations/person_keypoints_val.json", 63, 63, 1, 17),
        ("nuclei/annotations/instances_train.json", 200, 5639, 1, 0),
        ("nuclei/annotations/instances_val.json", 73, 2221, 1, 0),
    ],
)
def test_real_files(shared_data: Path, name: str, images: int, objects: int, categories: int, keypoints: int) -> None:
    dataset = load_coco(str(shared_data / name), require_masks=True)
    assert len(dataset.images) == images
    assert sum(len(image.objects) for image in dataset.images) == objects
    assert len(dataset.categories) == categories
    assert len(dataset.keypoint_names) == keypoints
    assert dataset.keypoint_categories == (("person",) if keypoints else ())
