"""A polygon drawn by pycocotools gives the mask again: pieces, holes and all."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_core.data.segmentation import object_mask
from maskrcnn_core.export.polygons import _distances, mask_polygon, simplified
from tests.generated_labels import blob


def polygon(mask: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return mask_polygon(object_mask(encoded, *mask.shape), tolerance)


def drawn(points: np.ndarray, height: int, width: int) -> np.ndarray:
    rle = coco_mask.merge(coco_mask.frPyObjects([points.ravel().tolist()], height, width))
    return coco_mask.decode(rle).astype(bool)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_a_rectangle_has_cut_corners_and_straight_sides() -> None:
    mask = np.zeros((8, 10), bool)
    mask[2:5, 3:7] = True
    points = polygon(mask)
    assert points.min(axis=0).tolist() == [3, 2]  # the edges of the pixels, not their middles
    assert points.max(axis=0).tolist() == [7, 5]
    assert len(points) == 8
    assert (drawn(points, 8, 10) == mask).all()


@pytest.mark.parametrize("seed", range(12))
def test_blobs_come_back(seed: int) -> None:
    mask = blob(np.random.default_rng(seed), 60, 80)
    assert iou(drawn(polygon(mask), 60, 80), mask) > 0.99
    rough = polygon(mask, 0.5)
    assert iou(drawn(rough, 60, 80), mask) > 0.9
    assert len(rough) < 0.7 * len(polygon(mask))


def test_a_hole_stays_empty_and_pieces_stay_apart() -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:35, 5:25] = True
    mask[12:28, 10:20] = False
    mask[10:20, 40:55] = True
    again = drawn(polygon(mask), 40, 60)
    assert iou(again, mask) > 0.99
    assert not again[15:25, 12:18].any()
    # The bridge has no width, and one line of pixels at the very most is drawn on it.
    assert again[:, 26:39].sum() <= 13


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_the_smallest_masks_are_polygons(shape: tuple[int, int]) -> None:
    mask = np.zeros((9, 9), bool)
    mask[1 : 1 + shape[0], 1 : 1 + shape[1]] = True
    points = polygon(mask, 0.5)
    assert len(points) >= 3
    assert points.min(axis=0).tolist() == [1, 1]
    assert points.max(axis=0).tolist() == [1 + shape[1], 1 + shape[0]]


def test_a_whole_image_is_a_polygon() -> None:
    assert (drawn(polygon(np.ones((6, 9), bool)), 6, 9) == 1).all()


def test_simplified_keeps_corners_and_never_less_than_a_triangle() -> None:
    square = np.array([[0, 0], [5, 0.2], [10, 0], [10, 5], [10, 10], [5, 10], [0, 10]], float)
    assert simplified(square, 0.5).tolist() == [[0, 0], [10, 0], [10, 10], [0, 10]]
    assert simplified(square, 0.0) is square
    assert simplified(square, 0.1).tolist() == [[0, 0], [5, 0.2], [10, 0], [10, 10], [0, 10]]
    assert len(simplified(square, 100.0)) >= 3


def test_a_point_beyond_the_end_of_a_piece_is_as_far_as_its_end() -> None:
    points = np.array([[-3.0, 4.0], [4.0, 2.0], [13.0, -4.0]])
    found = _distances(points, np.array([0.0, 0.0]), np.array([10.0, 0.0]))
    assert found.tolist() == [5.0, 2.0, 5.0]
    assert _distances(points[:1], np.zeros(2), np.zeros(2)).tolist() == [5.0]  # a piece without length


def test_a_spike_along_the_line_is_kept() -> None:
    # (20, 0) lies on the line through its neighbours (0, 0) and (10, 0.2), and ten pixels beyond them.
    ring = np.array([[0.0, 0.0], [20.0, 0.0], [10.0, 0.2], [10.0, 30.0], [0.0, 30.0]])
    assert [20.0, 0.0] in simplified(ring, 1.0).tolist()
