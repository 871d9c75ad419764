"""Grids and sliding windows: by eye, and against loops written out."""

import math

import numpy as np
import pytest

from maskrcnn_core.region_proposals.windows import grid_boxes, sliding_windows


def test_a_grid_by_eye() -> None:
    """Two boxes of half the image without overlap; three where neighbours share half of themselves."""
    assert grid_boxes((20, 40), [2], [0.0]).tolist() == [
        [0, 0, 20, 10],
        [20, 0, 20, 10],
        [0, 10, 20, 10],
        [20, 10, 20, 10],
    ]
    halves = grid_boxes((20, 40), [2], [0.5])
    assert sorted(set(halves[:, 0])) == [0, 10, 20]
    assert sorted(set(halves[:, 1])) == [0, 5, 10]
    assert len(halves) == 9
    assert grid_boxes((20, 40), [1], [0.9]).tolist() == [[0, 0, 40, 20]]


def test_the_grid_of_g_cnn_has_some_180_boxes() -> None:
    """Its paper says about 180 at test time; 16 + 81 + 100."""
    assert len(grid_boxes((375, 500), (2, 5, 10), (0.7, 0.5, 0.0))) == 197


def test_a_grid_reaches_every_edge_and_shares_no_more_than_it_may() -> None:
    for cells, overlap in ((3, 0.2), (5, 0.5), (7, 0.8), (10, 0.0), (9, 0.33)):
        boxes = grid_boxes((100, 300), [cells], [overlap])
        assert boxes[:, :2].min() == 0
        assert (boxes[:, :2] + boxes[:, 2:]).max(axis=0) == pytest.approx([300, 100])
        xs = np.unique(boxes[:, 0].round(6))
        assert (np.diff(xs) >= 300 / cells * (1 - overlap) - 1e-6).all()


def reference_windows(size: tuple[int, int], sides: list[float], ratios: list[float], step: float) -> list[list[float]]:
    """One box after the other."""
    height, width = size
    shapes = []
    for side in sides:
        for ratio in ratios:
            h, w = side * math.sqrt(ratio), side / math.sqrt(ratio)
            if h <= height and w <= width:
                shapes.append((h, w))
    boxes = [[0.0, 0.0, float(width), float(height)]]
    for h, w in sorted(shapes, key=lambda shape: -shape[0] * shape[1]):
        rows = math.ceil((height - h) / (step * h) - 1e-9) + 1
        columns = math.ceil((width - w) / (step * w) - 1e-9) + 1
        for row in range(rows):
            for column in range(columns):
                y = (height - h) * (row / (rows - 1) if rows > 1 else 0.5)
                x = (width - w) * (column / (columns - 1) if columns > 1 else 0.5)
                boxes.append([x, y, w, h])
    return boxes


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (16, 16), (100, 7)])
def test_windows_equal_the_loops(size: tuple[int, int]) -> None:
    found = sliding_windows(size, (8, 16, 32), (0.5, 1.0, 2.0), 0.5, most=10_000)
    assert found.tolist() == pytest.approx(np.array(reference_windows(size, [8, 16, 32], [0.5, 1.0, 2.0], 0.5)))


def test_windows_by_eye() -> None:
    """16 pixels in 16 x 32 by half of itself: the whole image, then at 0, 8 and 16."""
    assert sliding_windows((16, 32), [16], [1.0], 0.5, 100).tolist() == [
        [0, 0, 32, 16],
        [0, 0, 16, 16],
        [8, 0, 16, 16],
        [16, 0, 16, 16],
    ]


def test_windows_become_fewer_where_there_are_too_many() -> None:
    """And still reach every edge."""
    for most in (5000, 500, 50):
        boxes = sliding_windows((480, 640), (16, 32, 64, 128), (0.5, 1.0, 2.0), 0.1, most)
        assert 0.4 * most < len(boxes) <= most
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= [640 + 1e-9, 480 + 1e-9]).all()
        for side in (16, 128):
            of_side = boxes[(boxes[:, 2] == side) & (boxes[:, 3] == side)]
            assert of_side[:, 0].min() == 0 or len(of_side) == 1
    areas = boxes[:, 2] * boxes[:, 3]
    assert (np.diff(areas) <= 1e-6).all()  # larger ones first


def test_a_tiny_image_has_itself() -> None:
    assert sliding_windows((1, 3), (16, 32), (1.0,), 0.25, 10).tolist() == [[0, 0, 3, 1]]
