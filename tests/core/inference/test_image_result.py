"""What a notebook gets of an image: arrays, COCO's dictionaries equal to the labels', masks, text, pictures."""

import io
import pickle
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import ImageError
from maskrcnn_core.evaluation.results import coco_results
from maskrcnn_core.inference.image_result import ImageResult
from maskrcnn_core.inference.image_source import ImageSource
from maskrcnn_core.masks import encode_mask
from maskrcnn_core.records.detections import DetectionRecord
from maskrcnn_core.records.labels import ImageRecord, record_schema, records_to_table

CATEGORIES = (Category(18, "dog"), Category(1, "person"))
HEIGHT, WIDTH = 40, 60
FULL = np.ones((30, 30), dtype=np.float32)  # fine cells: the whole box to its corners


def rle(*box: float) -> str:
    return encode_mask(FULL, np.array(box, dtype=np.float32), HEIGHT, WIDTH)


DETECTIONS = (
    DetectionRecord(1, "person", 0.75, (10.0, 5.0, 20.0, 30.0), rle(10, 5, 30, 35), (12.0, 8.0, 1.0, 20.0, 9.0, 1.0)),
    DetectionRecord(18, "dog", 0.5, (40.0, 20.0, 10.0, 10.0), rle(40, 20, 50, 30)),
)
GREY = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)


def result_of(
    detections: tuple[DetectionRecord, ...] = DETECTIONS, source: ImageSource = GREY, has_masks: bool = True
) -> ImageResult:
    record = ImageRecord("ok", None, WIDTH, HEIGHT, detections)
    return ImageResult(record, CATEGORIES, has_masks, 2, source, max_pixels=10_000, apply_exif=True)


BOXES_ONLY = replace(result_of(()), has_masks=False, num_keypoints=None)


def test_arrays() -> None:
    result = result_of()
    assert len(result) == 2
    assert (result.width, result.height) == (WIDTH, HEIGHT)
    assert result.boxes.tolist() == [[10, 5, 30, 35], [40, 20, 50, 30]]
    assert result.scores.tolist() == [0.75, 0.5]
    assert result.labels.tolist() == [1, 0]  # positions in the categories, not ids
    assert result.names == ("person", "dog")
    assert result.keypoints is not None
    assert result.keypoints.tolist() == [[[12, 8, 1], [20, 9, 1]], [[0, 0, 0], [0, 0, 0]]]
    assert result.boxes.dtype == np.float32
    assert result.scores.dtype == np.float32
    assert result.labels.dtype == np.int64


def test_masks_are_whole_images() -> None:
    masks = result_of().masks()
    assert masks is not None
    assert masks.shape == (2, HEIGHT, WIDTH)
    assert masks.dtype == np.bool_
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[20:30, 40:50] = True
    assert np.array_equal(masks[1], expected)
    assert masks[0].sum() == 20 * 30


def test_nothing_found() -> None:
    result = result_of(())
    assert len(result) == 0
    assert (result.boxes.shape, result.scores.shape, result.labels.shape) == ((0, 4), (0,), (0,))
    assert result.names == ()
    masks = result.masks()
    assert masks is not None
    assert masks.shape == (0, HEIGHT, WIDTH)
    assert result.keypoints is not None
    assert result.keypoints.shape == (0, 2, 3)
    assert result.to_coco(1) == []
    assert repr(result) == "60 x 40 pixels, 0 objects"
    assert np.array_equal(np.asarray(result.draw()), GREY)


def test_without_heads() -> None:
    assert BOXES_ONLY.masks() is None
    assert BOXES_ONLY.keypoints is None
    assert BOXES_ONLY.to_coco(1) == []
    with pytest.raises(ValueError, match="has no head for it"):
        BOXES_ONLY.to_coco(1, "segm")
    with pytest.raises(ValueError, match="has no head for it"):
        BOXES_ONLY.to_coco(1, "keypoints")


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_results_are_those_of_the_labels(kind: Literal["bbox", "segm"]) -> None:
    result = result_of()
    table = records_to_table([7], ["a.jpg"], [result.record], "model", record_schema(CATEGORIES))
    assert result.to_coco(7, kind) == coco_results(table, kind)
    assert result.to_coco(7) == result.to_coco(7, "segm")
    assert replace(result, has_masks=False, num_keypoints=None).to_coco(7) == result.to_coco(7, "bbox")


def test_coco_keypoints() -> None:
    result = replace(result_of(), has_masks=False)
    points = [12.0, 8.0, 1.0, 20.0, 9.0, 1.0]
    expected = [{"image_id": 7, "category_id": 1, "score": 0.75, "keypoints": points}]  # the dog has none
    assert result.to_coco(7) == result.to_coco(7, "keypoints") == expected


def test_above_a_score() -> None:
    result = result_of().above(0.6)
    assert result.names == ("person",)
    assert len(result.boxes) == 1
    assert len(result_of().above(0.5)) == 2
    assert len(result_of().above(0.9)) == 0


def test_text() -> None:
    text = repr(result_of())
    assert text.splitlines() == [
        "60 x 40 pixels, 2 objects",
        "  person 0.75 at x 10.0, y 5.0, 20.0 x 30.0",
        "  dog 0.50 at x 40.0, y 20.0, 10.0 x 10.0",
    ]
    many = repr(result_of(DETECTIONS * 8)).splitlines()
    assert (many[0], many[-1], len(many)) == ("60 x 40 pixels, 16 objects", "  and 6 more", 12)
    assert repr(result_of(DETECTIONS[:1])).startswith("60 x 40 pixels, 1 object\n")


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "source", [png(), GREY, Image.fromarray(GREY), torch.from_numpy(GREY).permute(2, 0, 1)], ids=type
)
def test_a_picture_of_any_source(source: ImageSource) -> None:
    drawn = result_of(source=source).draw()
    assert isinstance(drawn, Image.Image)
    assert drawn.size == (WIDTH, HEIGHT)
    pixels = np.asarray(drawn)
    assert (pixels[25, 45] != 128).any()  # in the dog's mask
    assert (pixels[38, 58] == 128).all()  # far from everything
    assert (GREY == 128).all()  # the source stays


def test_a_picture_on_another_image() -> None:
    black = np.zeros_like(GREY)
    drawn = np.asarray(result_of().draw(black, min_score=0.6, labels=False))
    assert drawn[25, 45].tolist() == [0, 0, 0]  # the dog is below the score
    assert drawn[20, 20].any()
    assert result_of().draw(scale=2.0).size == (2 * WIDTH, 2 * HEIGHT)
    with pytest.raises(ImageError, match="got 30 x 40 pixels, the detections are of an image of 60 x 40"):
        result_of().draw(black[:, :30])


def test_a_picture_of_a_file_that_went_away() -> None:
    with pytest.raises(ImageError, match="no such file"):
        result_of(source="/nowhere/at/all.jpg").draw()


def test_results_travel() -> None:
    result = pickle.loads(pickle.dumps(result_of()))
    assert result.boxes.tolist() == result_of().boxes.tolist()
    assert repr(result) == repr(result_of())
