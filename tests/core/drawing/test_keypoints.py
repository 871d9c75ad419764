"""Keypoints on pictures: where, which as rings, limbs."""

import numpy as np
import pytest
from PIL import Image

from maskrcnn_core.drawing.keypoints import draw_keypoints
from maskrcnn_core.drawing.objects import DrawnObject, draw_objects

GRAY = np.full((120, 160, 3), 100, dtype=np.uint8)


def drawn(points: np.ndarray, *, probable: bool, line: int = 2) -> np.ndarray:
    canvas = Image.fromarray(GRAY)
    draw_keypoints(canvas, points, line=line, probable=probable)
    return np.asarray(canvas)


def shoulders(left: float, right: float) -> np.ndarray:
    points = np.zeros((17, 3))
    points[5] = 40, 40, left
    points[6] = 100, 40, right
    return points


def test_annotated_keypoints_are_drawn_where_they_are() -> None:
    picture = drawn(shoulders(2, 1), probable=False)
    assert (picture[40, 40] != 100).any()
    assert (picture[40, 70] != 100).any()  # the limb between the shoulders
    rows, columns = np.nonzero((picture != 100).any(axis=2))
    assert rows.min() > 30  # a point with v = 0 at (0, 0) draws nothing
    assert rows.max() < 50
    assert columns.min() > 30
    assert columns.max() < 110
    assert picture[40, 40].sum() > 2 * picture[40, 100].sum()  # seen: filled with colour; hidden: dark inside


def test_doubtful_detected_keypoints_are_rings_without_limbs() -> None:
    sure, doubtful = drawn(shoulders(0.9, 0.3), probable=True), drawn(shoulders(0.9, 0.01), probable=True)
    assert (sure[40, 70] != 100).any()
    assert (doubtful[40, 70] == 100).all()
    assert sure[40, 100].sum() > 2 * doubtful[40, 100].sum()
    np.testing.assert_array_equal(sure[40, 40], doubtful[40, 40])


def test_a_score_tells_detections_from_annotations() -> None:
    """v = 1 is a certain keypoint of a detection, and a hidden one of an annotation."""
    found, annotated = (
        draw_objects(GRAY, [DrawnObject((0, 0, 1, 1), "person", 1, score, keypoints=shoulders(1, 1))], labels=False)
        for score in (0.9, None)
    )
    assert found[40, 40].sum() > 2 * annotated[40, 40].sum()


def test_left_and_right_have_their_colours() -> None:
    points = np.zeros((17, 3))
    points[7], points[8] = (40, 40, 2), (100, 40, 2)  # the elbows
    picture = drawn(points, probable=False, line=3)
    assert picture[40, 40].tolist() != picture[40, 100].tolist()


@pytest.mark.parametrize("probable", [False, True])
@pytest.mark.parametrize(
    "points", [np.zeros((0, 3)), np.zeros((17, 3)), np.array([[-500.0, -500.0, 2.0]]), np.array([[5.0, 5.0, 2.0]])]
)
def test_keypoints_of_any_number_or_outside(points: np.ndarray, probable: bool) -> None:
    picture = drawn(points, probable=probable)
    assert picture.shape == GRAY.shape
    assert (picture != GRAY).any() == (len(points) == 1 and points[0, 0] > 0)
