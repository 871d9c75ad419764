"""Pixels of polygons and run lengths, against pycocotools and by eye."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask

from maskrcnn_core.data import segmentation
from maskrcnn_core.data.segmentation import nearby_polygon, object_mask, rasterise, reach, run_lengths

masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def test_run_lengths_by_eye() -> None:
    # Columns of a 2 x 3 image: (0, 1), (1, 1), (0, 0) -> one pixel off, three on, two off.
    rle = {"size": [2, 3], "counts": [1, 3, 2]}
    assert rasterise(rle, 2, 3).astype(int).tolist() == [[0, 1, 0], [1, 1, 0]]
    found = object_mask(rle, 2, 3)
    assert (found.left, found.top) == (0, 0)
    assert found.pixels.astype(int).tolist() == [[0, 1], [1, 1]]


def test_polygon_by_eye() -> None:
    found = object_mask([[2, 1, 5, 1, 5, 3, 2, 3]], 6, 8)
    assert (found.left, found.top, found.pixels.shape) == (2, 1, (2, 3))
    assert found.pixels.all()


def test_polygons_are_united() -> None:
    two = rasterise([[0, 0, 3, 0, 3, 3, 0, 3], [2, 2, 5, 2, 5, 5, 2, 5]], 6, 6)
    assert two.sum() == 9 + 9 - 1


@given(masks)
@settings(max_examples=150, deadline=None)
def test_both_forms_of_run_lengths_round_trip(mask: np.ndarray) -> None:
    height, width = mask.shape
    compressed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    plain = {"size": [height, width], "counts": run_lengths(compressed, height, width).tolist()}
    for rle in (compressed, text, plain):
        assert np.array_equal(rasterise(rle, height, width), mask)


@given(masks.filter(lambda mask: mask.any()))
@settings(max_examples=100, deadline=None)
def test_the_rectangle_is_tight(mask: np.ndarray) -> None:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    pixels = object_mask(rle, *mask.shape).pixels
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.any()


@given(st.lists(st.floats(-5, 40), min_size=6, max_size=20).filter(lambda values: len(values) % 2 == 0))
@settings(max_examples=100, deadline=None)
def test_polygons_as_pycocotools_draws_them(polygon: list[float]) -> None:
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], 30, 35))).astype(bool)
    assert np.array_equal(rasterise([polygon], 30, 35), expected)


def test_large_numbers_in_the_text_form() -> None:
    mask = np.zeros((3000, 2000), dtype=np.uint8, order="F")
    mask[2999, 1999] = mask[5, 700:900] = 1
    rle = coco_mask.encode(mask)
    assert np.array_equal(rasterise(rle, 3000, 2000), mask.astype(bool))


def test_empty_segmentations() -> None:
    nothing: tuple[Any, ...] = ([], {"size": [4, 5], "counts": [20]})
    for empty in nothing:
        assert object_mask(empty, 4, 5).pixels.shape == (0, 0)
        assert not rasterise(empty, 4, 5).any()


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [5, 4], "counts": [20]}, r"size \[5, 4\], expected"),
        ({"counts": [20]}, "size None"),
        ({"size": [4, 5], "counts": [19]}, "add up to 19 pixels"),
        ({"size": [4, 5], "counts": [-1, 21]}, "malformed"),
        ({"size": [4, 5], "counts": [2.5, 17.5]}, "whole numbers"),
        ({"size": [4, 5]}, "neither text nor a list"),
        ({"size": [4, 5], "counts": "~~~"}, "alphabet"),
        ({"size": [4, 5], "counts": "\N{SNOWMAN}"}, "malformed"),
        ({"size": [4, 5], "counts": "T"}, "ends within a number"),
        ({"size": [4, 5], "counts": "P" * 30 + "0"}, "more than 60 bits"),
        ({"size": [4, 5], "counts": ""}, "add up to 0"),
    ],
)
def test_malformed_run_lengths(rle: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rasterise(rle, 4, 5)


FAR = [1e4, 1e7, 2e8, 1e9, -1e9, float(-(2**31)), 1e300, -1.7e308]


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("place", [0, 1])
def test_far_points_cost_nothing_and_leave_the_rest_where_it_is(far: float, place: int) -> None:
    """A square of which one corner is far along an axis: within the image a rectangle that goes to its edge."""
    polygon = [10.0, 8.0, 20.0, 8.0, 20.0, 16.0, 10.0, 16.0]
    moved = {(0, True): [2, 4], (0, False): [0, 6], (1, True): [5, 7], (1, False): [1, 3]}[place, far > 0]
    for index in moved:
        polygon[index] = far
    begin = time.perf_counter()
    found = rasterise([polygon], 30, 40)
    assert time.perf_counter() - begin < 0.5
    expected = np.zeros((30, 40), np.bool_)
    rows, columns = slice(8, 16), slice(10, 20)
    if place == 0:
        columns = slice(10, 40) if far > 0 else slice(0, 20)
    else:
        rows = slice(8, 30) if far > 0 else slice(0, 16)
    expected[rows, columns] = True
    assert np.array_equal(found, expected)


def test_points_within_reach_are_given_to_pycocotools_as_they_are() -> None:
    far = reach(30, 40)
    polygon = np.array([-far, -far, 40 + far, 3.3, 7.1, 30 + far])
    assert nearby_polygon(polygon, 30, 40) is polygon
    polygon[0] -= 1
    assert nearby_polygon(polygon, 30, 40) is not polygon
    assert np.abs(nearby_polygon(polygon, 30, 40)).max() <= 41


@given(st.lists(st.floats(-3000, 3000), min_size=6, max_size=16).filter(lambda values: len(values) % 2 == 0))
@settings(max_examples=150, deadline=None)
def test_cutting_moves_no_edge_by_more_than_a_pixel(polygon: list[float]) -> None:
    height, width = 30, 35
    whole = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], height, width))).astype(bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "reach", lambda height, width: -100.0)
        cut = rasterise([polygon], height, width)
    # Edges that meet the bound far apart are drawn from another start: some pixels along them differ, no region does.
    different = Image.fromarray((whole != cut).astype(np.uint8) * 255)
    assert not (np.asarray(different.filter(ImageFilter.MinFilter(3))) > 0)[1:-1, 1:-1].any()


def test_polygons_that_are_absurd_inside_of_their_image() -> None:
    zigzag = np.tile([0.0, 0.0, 1000.0, 1000.0], 3000)
    with pytest.raises(ValueError, match="outline is longer than 2000000 pixels"):
        rasterise([zigzag], 1000, 1000)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no finite number"):
        rasterise([[1, 2, float("nan"), 3, 4, 5]], 10, 10)
    assert not rasterise([[200, 200, 1e9, 200, 1e9, 210]], 10, 10).any()
