"""Drawing: what is marked where, colours, labels that stay in the picture, adapters, sheets."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_core.drawing.objects import (
    DrawnObject,
    _label_rectangle,
    category_color,
    draw_objects,
    fit_scale,
    objects_from_annotations,
    objects_from_record,
)
from maskrcnn_core.drawing.sheets import contact_sheet
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord

GRAY = np.full((120, 160, 3), 100, dtype=np.uint8)


def test_nothing_to_draw_gives_an_equal_copy() -> None:
    drawn = draw_objects(GRAY, [])
    np.testing.assert_array_equal(drawn, GRAY)
    assert drawn is not GRAY


def test_the_picture_given_stays_as_it_is() -> None:
    before = GRAY.copy()
    mask = np.ones(GRAY.shape[:2], dtype=bool)
    draw_objects(GRAY, [DrawnObject((10, 10, 60, 60), "cat", 1, 0.5, mask)])
    np.testing.assert_array_equal(GRAY, before)


def test_box_is_drawn_on_its_outermost_pixels() -> None:
    drawn = draw_objects(GRAY, [DrawnObject((20, 30, 50, 70), "cat", 3)], labels=False)
    marked = (drawn == category_color(3)).all(axis=2)
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (20, 30, 50, 70)
    assert not marked[31:69, 21:49].any()
    assert marked.sum() == 2 * 30 + 2 * 40 - 4


def test_mask_is_tinted_inside_and_traced_at_its_edge() -> None:
    mask = np.zeros(GRAY.shape[:2], dtype=bool)
    mask[40:60, 40:80] = True
    drawn = draw_objects(GRAY, [DrawnObject((0, 0, 1, 1), "cat", 3, mask=mask)], labels=False)
    color = np.array(category_color(3))
    assert (drawn[40, 50] == color).all()
    np.testing.assert_allclose(drawn[50, 60], 100 + 0.42 * (color - 100.0), atol=1)
    changed = (drawn != 100).any(axis=2)
    changed[0, 0] = False  # the box
    np.testing.assert_array_equal(changed, mask)


def test_crowd_is_hatched_and_dashed() -> None:
    mask = np.zeros(GRAY.shape[:2], dtype=bool)
    mask[20:100, 20:140] = True
    for crowd in (False, True):
        drawn = draw_objects(GRAY, [DrawnObject((10, 10, 150, 110), "cat", 3, mask=mask, crowd=crowd)], labels=False)
        tinted = (drawn[30:90, 30:130] != 100).any(axis=2).mean()
        border = (drawn[10, 10:150] == category_color(3)).all(axis=1).mean()
        if crowd:
            assert 0.35 < tinted < 0.65
            assert 0.35 < border < 0.75
        else:
            assert tinted == border == 1.0


def test_category_colors_are_distinct() -> None:
    colors = np.array([category_color(index) for index in range(1, 91)], dtype=float)
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 1e3 * np.eye(len(colors))
    assert distances.min() > 5
    assert distances[:8, :8].min() > 60


def test_a_label_stands_above_its_box_and_moves_where_there_is_no_room() -> None:
    def place(box: tuple[float, float, float, float], placed: list[tuple[int, int, int, int]]) -> object:
        return _label_rectangle(DrawnObject(box, "cat", 1), (30, 10), (100, 80), placed)

    assert place((20, 40, 70, 60), []) == (20, 30, 50, 40)
    assert place((20, 40, 80, 60), [(20, 30, 50, 40)]) == (50, 30, 80, 40)  # beside the label that is there
    assert place((20, 4, 70, 60), []) == (20, 0, 50, 10)
    assert place((90, 40, 99, 60), []) == (70, 30, 100, 40)
    assert place((0, 0, 100, 80), [(0, 0, 100, 80)]) is None


def test_tiny_objects_and_hidden_labels_go_without() -> None:
    large, tiny = DrawnObject((10, 40, 90, 100), "cat", 3, 0.9), DrawnObject((120, 60, 126, 66), "cat", 3, 0.9)
    for objects, labelled in (([large], True), ([tiny], False)):
        plain = draw_objects(GRAY, objects, labels=False)
        assert (draw_objects(GRAY, objects) != plain).any() == labelled
    twins = draw_objects(GRAY, [large] * 30)
    assert (twins == category_color(3)).all(axis=2).mean() < 0.25  # not thirty labels on top of each other


@given(
    st.tuples(*[st.floats(-300, 300) for _ in range(4)]),
    st.lists(st.tuples(*[st.integers(-20, 120) for _ in range(4)]), max_size=5),
)
@settings(max_examples=100, deadline=None)
def test_labels_never_leave_the_picture(
    corners: tuple[float, float, float, float], placed: list[tuple[int, int, int, int]]
) -> None:
    x1, y1, x2, y2 = corners
    box = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    place = _label_rectangle(DrawnObject(box, "cat", 1), (30, 10), (100, 80), placed)
    if place is not None:
        assert 0 <= place[0] < place[2] <= 100
        assert 0 <= place[1] < place[3] <= 80
        assert (place[2] - place[0], place[3] - place[1]) == (30, 10)


@pytest.mark.parametrize("shape", [(1, 1), (5, 200), (200, 5), (24, 24), (900, 1400)])
def test_every_size_of_picture(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), dtype=np.uint8)
    mask = np.ones(shape, dtype=bool)
    box = (-3.0, -2.0, shape[1] + 4.0, shape[0] + 5.0)
    objects = [DrawnObject(box, "a very long category name " * 8, 5, 0.123, mask, np.full((17, 3), 2.0))]
    drawn = draw_objects(image, objects)
    assert drawn.shape == image.shape
    assert drawn.any()


def test_scale_enlarges_picture_box_and_mask_alike() -> None:
    mask = np.zeros(GRAY.shape[:2], dtype=bool)
    mask[30:70, 20:50] = True
    keypoints = np.array([[35.0, 50.0, 2.0]])
    drawn = draw_objects(GRAY, [DrawnObject((20, 30, 50, 70), "cat", 3, None, mask, keypoints)], scale=2, labels=False)
    assert drawn.shape == (240, 320, 3)
    rows, columns = np.nonzero((drawn != 100).any(axis=2))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (40, 60, 100, 140)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_other_pictures_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        draw_objects(image, [])


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="mask of size"):
        draw_objects(GRAY, [DrawnObject((0, 0, 1, 1), "cat", 1, mask=np.ones((3, 3), dtype=bool))])


def test_record_and_annotations_of_one_object_draw_alike() -> None:
    mask = np.zeros(GRAY.shape[:2], dtype=bool)
    mask[30:70, 20:50] = True
    counts = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
    points = (30.0, 40.0, 1.0) * 17
    found = DetectionRecord(3, "cat", 0.9, (20.0, 30.0, 30.0, 40.0), counts, points)
    weak = DetectionRecord(3, "cat", 0.2, (0.0, 0.0, 5.0, 5.0))
    annotation = {
        "category_id": 3,
        "bbox": [20, 30, 30, 40],
        "segmentation": [[20, 30, 50, 30, 50, 70, 20, 70]],
        "keypoints": [30.0, 40.0, 2.0] * 17,  # seen; v of a record is a probability
        "iscrowd": 0,
    }
    (left,) = objects_from_record(ImageRecord("ok", None, 160, 120, (found, weak)), min_score=0.5)
    (right,) = objects_from_annotations([annotation], {3: "cat"}, 120, 160)
    assert left.score == 0.9
    assert right.score is None
    assert left.box == right.box == (20, 30, 50, 70)
    np.testing.assert_array_equal(draw_objects(GRAY, [left], labels=False), draw_objects(GRAY, [right], labels=False))


def test_adapters_without_masks_names_or_objects() -> None:
    assert objects_from_record(ImageRecord("missing", "no such object", None, None)) == []
    assert objects_from_annotations([], {}, 4, 4) == []
    (plain,) = objects_from_annotations([{"category_id": 9, "bbox": [0, 0, 2, 2]}], {}, 4, 4)
    assert (plain.category, plain.mask, plain.keypoints, plain.crowd) == ("9", None, None, False)
    (boxed,) = objects_from_record(ImageRecord("ok", None, 4, 4, (DetectionRecord(9, "x", 0.5, (0, 0, 2, 2)),)))
    assert boxed.mask is None


def test_contact_sheet_shows_both_pictures_of_every_row() -> None:
    red, blue = np.zeros((60, 80, 3), dtype=np.uint8), np.zeros((90, 40, 3), dtype=np.uint8)
    red[..., 0], blue[..., 2] = 200, 200
    sheet = contact_sheet([(red, blue, "one"), (blue, red, "two " * 90), (red, red, "")], columns=2, cell=100)
    assert (sheet == (200, 0, 0)).all(axis=2).sum() == 4 * 60 * 80
    assert (sheet == (0, 0, 200)).all(axis=2).sum() == 2 * 90 * 40
    edge = np.concatenate([sheet[:4].reshape(-1, 3), sheet[-4:].reshape(-1, 3), sheet[:, :4].reshape(-1, 3)])
    assert (edge == edge[0]).all()  # an empty margin


def test_contact_sheet_of_nothing_and_of_large_pictures() -> None:
    assert contact_sheet([]).shape[2] == 3
    large = np.zeros((500, 1000, 3), dtype=np.uint8)
    assert (contact_sheet([(large, large, "x")], cell=100) == 0).all(axis=2).sum() == 2 * 50 * 100
    assert fit_scale(large, 100) == 0.1
    with pytest.raises(ValueError, match="columns"):
        contact_sheet([], columns=0)


def test_real_annotations_change_only_what_they_cover(shared_data: Path) -> None:
    document = json.loads((shared_data / "coco/annotations/instances_and_keypoints_val.json").read_text())
    names = {entry["id"]: entry["name"] for entry in document["categories"]}
    crowded = {entry["image_id"] for entry in document["annotations"] if entry["iscrowd"]}
    image = next(entry for entry in document["images"] if entry["id"] in crowded)
    with Image.open(shared_data / "coco/images" / image["file_name"]) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    annotations = [entry for entry in document["annotations"] if entry["image_id"] == image["id"]]
    objects = objects_from_annotations(annotations, names, *pixels.shape[:2])
    assert any(drawn.crowd for drawn in objects)
    drawn = draw_objects(pixels, objects, labels=False)
    near = np.zeros(pixels.shape[:2], dtype=bool)
    for found in objects:
        x1, y1, x2, y2 = found.box
        if found.keypoints is not None and (found.keypoints[:, 2] > 0).any():  # a keypoint may lie outside the box
            points = found.keypoints[found.keypoints[:, 2] > 0]
            (x1, y1), (x2, y2) = np.minimum((x1, y1), points.min(0)[:2]), np.maximum((x2, y2), points.max(0)[:2])
        near[max(0, int(y1) - 12) : int(y2) + 12, max(0, int(x1) - 12) : int(x2) + 12] = True
    changed = (drawn != pixels).any(axis=2)
    assert changed.any()
    assert not changed[~near].any()
