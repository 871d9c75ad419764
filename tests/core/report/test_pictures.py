import io

import numpy as np
import pytest
from PIL import Image

from maskrcnn_core.report.pictures import example_panels, window_around
from tests.core.evaluation.synthetic import HEIGHT, WIDTH, annotation, detection, found


@pytest.mark.parametrize(
    ("box", "window"),
    [
        (None, (0, 0, 300, 200)),
        ((140.0, 90.0, 10.0, 10.0), (109, 59, 181, 131)),  # at least 72 pixels
        ((100.0, 80.0, 50.0, 20.0), (60, 25, 190, 155)),  # 2.6 times the longer side
        ((0.0, 0.0, 10.0, 10.0), (0, 0, 72, 72)),  # not over the edge
        ((290.0, 190.0, 10.0, 10.0), (228, 128, 300, 200)),
        ((10.0, 10.0, 250.0, 150.0), (0, 0, 300, 200)),  # not larger than the image
    ],
)
def test_window(box: tuple[float, float, float, float] | None, window: tuple[int, int, int, int]) -> None:
    assert window_around(box, 200, 300) == window


def pixels_of(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def test_ground_truth_beside_prediction() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    record = found(detection(2, 0.9, [40, 40, 20, 20]), detection(2, 0.2, [70, 40, 20, 20]))
    objects = [annotation(1, 1, 2, [40, 70, 20, 20])]
    truth, prediction = example_panels(image, record, objects, {2: "cat"}, (40, 40, 20, 20), min_score=0.5, side=144)
    assert (truth.heading, prediction.heading) == ("ground truth", "prediction")
    assert (truth.width, truth.height) == (144, 144)  # 72 pixels, twice as large
    assert truth.focus == pytest.approx((26 / 72, 26 / 72, 20 / 72, 20 / 72))
    left, right = pixels_of(truth.picture), pixels_of(prediction.picture)
    changed = [(np.abs(part - 100).max(axis=-1) > 40) for part in (left, right)]
    where_found, where_annotated = (slice(52, 92), slice(52, 92)), (slice(112, 144), slice(52, 92))
    assert changed[1][where_found].mean() > 0.3
    assert changed[0][where_found].mean() < 0.05
    assert changed[0][where_annotated].mean() > 0.3
    assert changed[1][where_annotated].mean() < 0.05
    assert changed[1][52:92, 112:].mean() < 0.05  # the weak detection is not drawn


def test_a_whole_image_without_ground_truth_is_not_enlarged_much() -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    plain, drawn = example_panels(image, found(), None, {}, None, min_score=0.5, side=150)
    assert (plain.heading, plain.focus) == ("image", None)
    assert (drawn.width, drawn.height) == (150, 120)
    large, _ = example_panels(np.zeros((600, 900, 3), np.uint8), found(), None, {}, None, min_score=0.5, side=150)
    assert (large.width, large.height) == (150, 100)
