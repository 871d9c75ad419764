"""Reading annotation files, and the message for each thing that can be wrong with one."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_core.config.model import Category
from maskrcnn_core.data.coco.category_ids import with_categories
from maskrcnn_core.data.coco.dataset import load_coco, rasterise
from maskrcnn_core.errors import AnnotationError, StorageError
from maskrcnn_core.evaluation.annotations import read_document

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]
RUNS = [11, 4, 6, 4, 6, 4, 6, 4, 155]  # of the square, down the columns of 10 pixels
TURNED = [21, 4, 16, 4, 16, 4, 16, 4, 115]  # down columns of 20 pixels


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
    polygons: Any = dog.segmentation
    assert [list(polygon) for polygon in polygons] == [SQUARE]
    assert (cat.box, cat.crowd, cat.area) == ((15.0, 0.0, 20.0, 4.0), True, 4.0)  # clipped; pixels of the mask
    assert dataset.images[1].objects == ()
    assert not dataset.faults


def test_a_uri_is_read_as_a_path(write: Callable[[Any], str]) -> None:
    path = write(document())
    one, other = load_coco(f"file://{path}", require_masks=True), load_coco(path, require_masks=True)
    assert list(one.images) == list(other.images)
    assert one.categories == other.categories


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
        (
            {"images": [], "annotations": [1], "categories": [{"id": 1, "name": "a"}]},
            "position 0: got 1, expected an object",
        ),
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
        ("images", 1, {"id": 7}, "image 7: listed twice"),
        ("images", 0, {"id": "7"}, "id '7', expected a whole number"),
        ("images", 0, {"id": 7.5}, "id 7.5, expected a whole number"),
        ("images", 0, {"id": True}, "id True, expected a whole number"),
        ("images", 0, {"id": 2**64 + 7}, "expected a whole number of 64 bits"),
        ("categories", 0, {"id": 2**31}, "expected a whole number of 32 bits"),
        ("categories", 0, {"name": "\ud800"}, "category 9: name '.ud800', expected text"),
        ("annotations", 0, {"id": None}, "annotation at position 0: id None"),
        ("annotations", 0, {"image_id": "7"}, "annotation 1: image_id '7', expected the whole number of an entry"),
        ("annotations", 1, {"segments_info": [], "id": None}, "this is a panoptic file"),
        ("categories", 0, {"id": 4}, "category 4: duplicate id"),
        ("categories", 0, {"name": None}, "category 9: name None"),
        ("annotations", 1, {"id": 1}, "annotation 1: duplicate id"),
        ("annotations", 0, {"category_id": 5}, "annotation 1: category_id 5 is not in section 'categories'"),
        *(
            ("annotations", 0, {"category_id": far}, f"annotation 1: category_id {int(far)} is not in section")
            for far in (2**31, -(2**31), 2**63, -(2**63) - 1, 10**40, 2.0**40)
        ),
        ("annotations", 0, {"image_id": 2**63}, "annotation 1: an id of more than 64 bits"),
        ("annotations", 0, {"id": -(2**63) - 1}, "annotation -9223372036854775809: an id of more than 64 bits"),
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
    ({"bbox": [1, 1, 0, 4]}, "field", "the box of its mask is taken"),
    ({"bbox": [1, 1, 4, -4]}, "field", "the box of its mask is taken"),
    ({"bbox": [1, 1, float("nan"), 4]}, "field", "the box of its mask is taken"),
    ({"bbox": [1, 1, 4]}, "field", "the box of its mask is taken"),
    ({"bbox": None}, "field", "the box of its mask is taken"),
    ({"bbox": [20, 1, 4, 4]}, "field", "the box of its mask is taken"),
    ({"bbox": ["1", "1", "4.0", "4"]}, "field", "with text for numbers"),
    ({"bbox": [1, 1, 1e300, 4]}, "field", "cut to the image"),
    (
        {"bbox": [1, 1, 0, 4], "segmentation": []},
        "object",
        r"expected x, y, width, height above 0 in its image of 20 x 10",
    ),
    ({"bbox": [20, 1, 4, 4], "segmentation": None}, "object", "no usable mask"),
    ({"area": -1}, "field", "area -1, as 16"),
    ({"area": None}, "field", "area None, as 16"),
    ({"area": "12"}, "field", "area '12', as 12"),
    ({"area": float("inf"), "segmentation": [[1, 1, 5, 1, 5, 5]]}, "field", "area inf, as 6"),
    ({"iscrowd": None}, "field", "iscrowd None, as 0"),
    ({"iscrowd": "0"}, "field", "iscrowd '0', as 0"),
    ({"iscrowd": 2}, "field", "iscrowd 2, a region to ignore"),
    (
        {"segmentation": [SQUARE, [1, 1]]},
        "mask",
        "a polygon of 2 numbers, expected x, y of at least 3 points; left out",
    ),
    ({"segmentation": [SQUARE, [1, 1, 5, 1, 5, 5, 1]]}, "mask", "a polygon of 7 numbers"),
    ({"segmentation": [SQUARE, [1, 1, 5, 1, None, 5]]}, "mask", "a polygon with None, expected finite numbers"),
    ({"segmentation": SQUARE}, "mask", "a flat list, taken for one polygon"),
    ({"segmentation": [[1, 1], [5, 1], [5, 5], [1, 5]]}, "mask", "a list of points, taken for one polygon"),
    ({"segmentation": [[[1, 1], [5, 1], [5, 5], [1, 5]]]}, "mask", "a polygon as a list of points"),
    ({"segmentation": [{"size": [10, 20], "counts": RUNS}]}, "mask", "run lengths inside of a list"),
    ({"segmentation": {"size": [20, 10], "counts": RUNS}}, "mask", r"run lengths of size \[20, 10\], expected"),
    ({"segmentation": {"size": [20, 10], "counts": TURNED}}, "mask", "turned over its diagonal"),
    (
        {"segmentation": [SQUARE, [1e300, 1, 1e300, 2, 1e299, 5]]},
        "mask",
        "as far as 1e.300, cut to the image: nothing is left",
    ),
    ({"segmentation": [[1, 1, 5, 1]]}, "no mask", "a polygon of 4 numbers"),
    ({"segmentation": [[1, 1, 5, 1, float("inf"), 5]]}, "no mask", "finite numbers"),
    ({"segmentation": [[21, 1, 25, 1, 25, 5]]}, "no mask", "outside of its image"),
    ({"segmentation": "x"}, "no mask", "of type str"),
    ({"segmentation": []}, "no mask", "no segmentation"),
    ({"segmentation": [[]]}, "no mask", "a polygon of 0 numbers"),
    ({"segmentation": {"size": [20, 10], "counts": [200]}}, "no mask", r"size \[20, 10\], expected"),
    ({"segmentation": {"size": [10, 20], "counts": [150]}}, "no mask", "malformed run lengths"),
    ({"segmentation": {"size": [10, 20], "counts": [0, 10**9]}}, "no mask", "longer than the image"),
    ({"segmentation": {"size": [10, 20], "counts": [2**60] * 16}}, "no mask", "longer than the image"),
]


@pytest.mark.parametrize(("change", "kind", "message"), FAULTS)
def test_faults_of_one_annotation(write: Callable[[Any], str], change: dict[str, Any], kind: str, message: str) -> None:
    content = document()
    content["annotations"][0] |= change
    path = write(content)
    with pytest.raises(AnnotationError, match=message) as caught:
        load_coco(path, require_masks=True)
    assert str(caught.value).startswith(f"{path}: 1 ")
    assert ": annotation 1 of image 7: " in str(caught.value)
    assert "To mend: " in str(caught.value)
    mending = load_coco(path, require_masks=True, on_fault="drop")
    assert mending.faults.counts == {kind: 1}
    objects = {item.annotation_id: item for item in mending.images[0].objects}
    assert set(objects) == ({2} if kind == "object" else {1, 2})
    if kind != "object":
        assert objects[1].crowd == (kind == "no mask" or change.get("iscrowd") == 2)  # a region to ignore
        whole = change != {"bbox": [1, 1, 1e300, 4]}
        assert objects[1].box == ((1.0, 1.0, 5.0, 5.0) if whole else (1.0, 1.0, 20.0, 5.0))
        expected = rasterise([SQUARE], 10, 20)
        if kind == "mask":
            assert (rasterise(objects[1].segmentation, 10, 20) == expected).all()  # type: ignore[arg-type]


SILENT = [
    {"iscrowd": False},
    {"iscrowd": 0.0},
    {"id": 1.0, "image_id": 7.0, "category_id": 9.0},
    {"segmentation": {"size": [10.0, 20.0], "counts": RUNS}},
    {"segmentation": {"size": [10, 20], "counts": [float(run) for run in RUNS]}},
    {"keypoints": [1, 2, 2], "num_keypoints": 1},
    {"keypoints": [None, None, 0]},
]


@pytest.mark.parametrize("change", SILENT)
def test_spellings_that_mean_the_same(write: Callable[[Any], str], change: dict[str, Any]) -> None:
    expected = load_coco(write(document()), require_masks=True)
    content = document()
    content["annotations"][0] |= change
    found = load_coco(write(content), require_masks=True, keypoints=False)
    (one, *_), (other, *_) = found.images[0].objects, expected.images[0].objects
    assert (one.annotation_id, one.category_id, one.box, one.area, one.crowd) == (1, 9, other.box, other.area, False)
    assert (rasterise(one.segmentation, 10, 20) == rasterise([SQUARE], 10, 20)).all()  # type: ignore[arg-type]


def test_missing_box_and_area_come_from_the_mask(write: Callable[[Any], str]) -> None:
    content = document()
    del content["annotations"][0]["bbox"], content["annotations"][0]["area"]
    dog = load_coco(write(content), require_masks=True).images[0].objects[0]
    assert (dog.box, dog.area) == ((1.0, 1.0, 5.0, 5.0), 16.0)


def test_what_a_model_of_boxes_does_not_need_is_not_looked_at(write: Callable[[Any], str]) -> None:
    content = document()
    content["annotations"][0] |= {"segmentation": [[1, 1]], "keypoints": ["x"]}
    dataset = load_coco(write(content), require_masks=False, masks=False, keypoints=False)
    assert not dataset.faults
    assert (dataset.images[0].objects[0].segmentation, dataset.images[0].objects[0].crowd) == (None, False)


def test_an_object_without_a_mask_is_a_region_only_where_masks_are_learnt(write: Callable[[Any], str]) -> None:
    content = document()
    content["annotations"][0]["segmentation"] = [[1, 1]]
    for require_masks in (True, False):
        found = load_coco(write(content), require_masks=require_masks, on_fault="drop")
        assert [item.crowd for item in found.images[0].objects] == [require_masks, True]
        assert found.faults.counts == {"no mask": 1}


@pytest.mark.parametrize(
    "change",
    [{"width": 0}, {"height": None}, {"width": "x"}, {"width": 10**9}, {"file_name": None}, {"file_name": "\udc00"}],
)
def test_images_that_cannot_be_used_are_left_out_as_long_as_others_are_left(
    write: Callable[[Any], str], change: dict[str, Any]
) -> None:
    content = document()
    content["images"][0] |= change
    dataset = load_coco(write(content), require_masks=True, on_fault="drop")
    assert [image.image_id for image in dataset.images] == [3]
    assert dataset.faults.counts == {"image": 1}  # and not its annotations once more
    content["images"][1] |= change
    with pytest.raises(AnnotationError, match="no image can be used: image 7: "):
        load_coco(write(content), require_masks=True, on_fault="drop")


def test_sizes_as_other_numbers(write: Callable[[Any], str]) -> None:
    content = document()
    content["images"][0] |= {"width": 20.0, "height": "10"}
    image = load_coco(write(content), require_masks=True).images[0]
    assert (image.width, image.height) == (20, 10)


def test_annotations_of_unknown_images_are_left_out_unless_all_are(write: Callable[[Any], str]) -> None:
    content = document()
    content["annotations"][0]["image_id"] = 99
    dataset = load_coco(write(content), require_masks=True, on_fault="drop")
    assert dataset.faults.first == {"object": ("annotation 1: image_id 99 is not in section 'images'",)}
    content["annotations"][1]["image_id"] = 99
    with pytest.raises(
        AnnotationError, match="annotation 1: image_id 99 is not in section 'images', and neither is any"
    ):
        load_coco(write(content), require_masks=True, on_fault="drop")


def test_names_of_categories(write: Callable[[Any], str]) -> None:
    content = document()
    content["categories"] = [{"id": 9, "name": "cell"}, {"id": 4, "name": "cell"}, {"id": 5, "name": 7}, {"id": 6}]
    found = load_coco(write(content), require_masks=True).categories
    assert [category.name for category in found] == ["cell", "7", "6", "cell"]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://images.cocodataset.org/train2017/000000391895.jpg", "train2017/000000391895.jpg"),
        ("http://host/a%20b.jpg", "a b.jpg"),
        ("val2017/1.jpg", "val2017/1.jpg"),
    ],
)
def test_file_names_of_lvis(write: Callable[[Any], str], url: str, name: str) -> None:
    content = document()
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = url
    dataset = load_coco(write(content), require_masks=True)
    assert ([image.file_name for image in dataset.images], dataset.named_by_url) == ([name, "a.jpg"], True)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    content = document()
    content["categories"][0]["name"] = "Straße"
    (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    assert load_coco(str(tmp_path / "a.json"), require_masks=True).categories[1].name == "Straße"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": "é"}'.encode("latin-1"), "not JSON .byte 12 is no UTF-8 text; is it Latin-1"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "lists or objects in one another, far deeper"),
        (b'{"images": [{"id": 1' + b"0" * 5000 + b"}]}", "a number of thousands of digits"),
    ],
)
def test_texts_that_no_reader_takes(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(AnnotationError, match=rf"a\.json: .*{message}") as caught:
        load_coco(str(tmp_path / "a.json"), require_masks=True)
    assert "\n" not in str(caught.value)


def test_categories_meet_by_name(write: Callable[[Any], str]) -> None:
    dataset = load_coco(write(document()), require_masks=True)  # 4 cat, 9 dog
    same, said = with_categories(dataset, dataset.categories)
    assert (same is dataset, said) == (True, "")
    swapped, said = with_categories(dataset, (Category(4, "dog"), Category(9, "cat"), Category(11, "cow")))
    assert [item.category_id for item in swapped.images[0].objects] == [4, 9]
    assert said == (
        "categories meet by name: 'cat' has the id 4 here and 9 there, 'dog' has the id 9 here and 4 there, "
        "1 are not in this file ('cow')"
    )
    assert swapped.label_of == {4: 0, 9: 1, 11: 2}
    with pytest.raises(
        AnnotationError, match=r"1 have a name of their own: 'dog' .id 9, which is 'wolf' there.; expected"
    ):
        with_categories(dataset, (Category(4, "cat"), Category(9, "wolf")))


def test_the_document_is_read_back_as_the_same(write: Callable[[Any], str]) -> None:
    """Scoring while training sees what was checked, in every number."""
    content = document()
    content["categories"][0]["keypoints"] = ["left_eye", "right_eye"]
    content["annotations"][0] |= {"keypoints": [1, 2, 2, 0, 0, 0], "num_keypoints": 7, "bbox": [-1.5, 1, 4.25, 4]}
    dataset = load_coco(write(content), require_masks=False)
    found = read_document(dataset.document())
    assert not found.faults
    dog, cat = found.entries
    assert (dog["bbox"], dog["keypoints"], dog["num_keypoints"]) == ([-1.5, 1, 4.25, 4], [1, 2, 2, 0, 0, 0], 7)
    assert (cat["bbox"], cat["iscrowd"], cat["area"]) == ([15, -2, 10, 6], 1, 4)
    assert [one.get("keypoints") for one in found.categories] == [None, ["left_eye", "right_eye"]]


def test_boxes_alone_are_enough_without_masks(write: Callable[[Any], str]) -> None:
    content = document()
    del content["annotations"][0]["segmentation"]
    assert load_coco(write(content), require_masks=False, masks=False).images[0].objects[0].segmentation is None


def test_the_first_faults_are_shown_and_the_rest_counted(write: Callable[[Any], str]) -> None:
    content = document()
    bad = content["annotations"][0] | {"bbox": [0, 0, 0, 0], "segmentation": None}
    content["annotations"] = [copy.copy(bad) | {"id": number} for number in range(27)]
    with pytest.raises(AnnotationError, match=r"27 annotations are left out: .*annotation 2 .*; and 24 more") as caught:
        load_coco(write(content), require_masks=True)
    assert "annotation 3 " not in str(caught.value)
    faults = load_coco(write(content), require_masks=True, on_fault="drop").faults
    assert (faults.counts, len(faults.all_first())) == ({"object": 27}, 20)


def test_keypoints(write: Callable[[Any], str]) -> None:
    content = document()
    content["categories"][0]["keypoints"] = ["left_eye", "right_eye"]
    content["annotations"][0]["keypoints"] = [1, 2, 2, 0, 0, 0]
    dataset = load_coco(write(content), require_masks=True)
    assert dataset.keypoint_names == ("left_eye", "right_eye")
    assert dataset.keypoint_categories == ("dog",)
    assert [item.keypoints for item in dataset.images[0].objects] == [(1.0, 2.0, 2.0, 0.0, 0.0, 0.0), None]


KEYPOINT_FAULTS = [
    ([1, 2, 3, 0, 0, 0], "3. of keypoint 0, taken as .1.0, 2.0, 2.", (1, 2, 2, 0, 0, 0)),
    ([1, 2, 2, 4, 5, 0.5], "0.5. of keypoint 1, taken as .4.0, 5.0, 2.", (1, 2, 2, 4, 5, 2)),
    ([1, 2, 2, None, None, 0], "None, None, 0. of keypoint 1, taken as .0, 0, 0.", (1, 2, 2, 0, 0, 0)),
    ([1, 2, 2, 4, 5, None], "None. of keypoint 1, taken as", (1, 2, 2, 0, 0, 0)),
    ([1, 2, 2, 0, float("nan"), 1], "nan, 1. of keypoint 1, taken as", (1, 2, 2, 0, 0, 0)),
    ([1, 2, 2, 1e300, 3, 1], "1e.300, 3, 1. of keypoint 1", (1, 2, 2, 0, 0, 0)),
    ([1, 2, 2, 0, 0], "5 numbers, expected 3 for each of the category's 2", None),
    ([1, 2, 2], "3 numbers, expected 3 for each of the category's 2", None),
    ("1,2,2", "'1,2,2', expected 3 for each", None),
]


@pytest.mark.parametrize(("keypoints", "message", "left"), KEYPOINT_FAULTS)
def test_faults_of_keypoints_name_the_annotation(
    write: Callable[[Any], str], keypoints: Any, message: str, left: tuple[float, ...] | None
) -> None:
    content = document()
    content["categories"][0]["keypoints"] = ["left_eye", "right_eye"]
    content["annotations"][0]["keypoints"] = keypoints
    path = write(content)
    with pytest.raises(AnnotationError, match=f"annotation 1 of image 7: keypoints: .*{message}"):
        load_coco(path, require_masks=True)
    found = load_coco(path, require_masks=True, on_fault="drop")
    assert (found.faults.counts, found.images[0].objects[0].keypoints) == ({"keypoints": 1}, left)


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
    assert load_coco(write(content), require_masks=True, keypoints=False).keypoint_names == ()


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
