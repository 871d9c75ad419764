"""Pixels of polygons and run lengths, against pycocotools and by eye."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from maskrcnn_core.data.segmentation import object_mask, rasterise, run_lengths

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
    for empty in ([], {"size": [4, 5], "counts": [20]}):
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
