"""Masks -> polygons and run lengths, against pycocotools' rasterisation."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from maskrcnn_core.data.outlines import Mask, outlines, polygon_or_rle, uncompressed_rle
from maskrcnn_core.data.segmentation import rasterise

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.booleans())


def _decoded(segmentation: Any, mask: Mask) -> Mask:
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *mask.shape)
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(segmentation)
    return coco_mask.decode(segmentation).astype(bool)


def test_square_becomes_an_octagon_that_spans_its_pixels() -> None:
    mask = np.zeros((6, 7), dtype=bool)
    mask[2:5, 1:5] = True  # rows 2..4, columns 1..4: pixels cover x 1..5, y 2..5
    (outline,) = outlines(mask)
    assert outline.min(axis=0).tolist() == [1.0, 2.0]
    assert outline.max(axis=0).tolist() == [5.0, 5.0]
    corners = {(1.5, 2.0), (4.5, 2.0), (5.0, 2.5), (5.0, 4.5), (4.5, 5.0), (1.5, 5.0), (1.0, 4.5), (1.0, 2.5)}
    assert {tuple(point) for point in outline.tolist()} == corners


def test_a_hole_and_two_pieces_have_two_outlines_and_run_lengths() -> None:
    frame = np.ones((5, 5), dtype=bool)
    frame[2, 2] = False
    pieces = np.zeros((5, 5), dtype=bool)
    pieces[0, 0] = pieces[4, 4] = True
    for mask in (frame, pieces):
        assert len(outlines(mask)) == 2
        segmentation = polygon_or_rle(mask)
        assert isinstance(segmentation, dict)
        assert isinstance(segmentation["counts"], str)


def test_run_lengths_go_down_the_columns_and_begin_with_zeros() -> None:
    mask = np.array([[0, 1], [0, 1], [1, 0]], dtype=bool)  # columns 001 and 110: 2 zeros, 3 ones, 1 zero
    assert uncompressed_rle(mask) == {"size": [3, 2], "counts": [2, 3, 1]}
    assert uncompressed_rle(~mask)["counts"] == [0, 2, 3, 1]


@pytest.mark.parametrize("shape", [(1, 1), (3, 4)])
def test_an_empty_mask_has_no_outline(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, dtype=bool)
    assert outlines(mask) == []
    assert not _decoded(polygon_or_rle(mask), mask).any()
    assert uncompressed_rle(mask)["counts"] == [shape[0] * shape[1]]


@given(masks)
@settings(max_examples=300, deadline=None)
def test_every_segmentation_draws_its_mask_again(mask: Mask) -> None:
    for segmentation in (polygon_or_rle(mask), uncompressed_rle(mask)):
        np.testing.assert_array_equal(_decoded(segmentation, mask), mask)
        np.testing.assert_array_equal(rasterise(segmentation, *mask.shape), mask)
