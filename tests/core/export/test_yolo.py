"""Places as shares of the image."""

import pytest

from maskrcnn_core.export.source import ExportImage, ExportStyle
from maskrcnn_core.export.yolo import _coordinates
from maskrcnn_core.records.detections import DetectionRecord


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ((10.0, 5.0, 20.0, 10.0), "0.200000 0.200000 0.200000 0.200000"),
        # Labels of any origin: what would lie beyond the image is at its border, as the format allows no other.
        ((-60.0, -5.0, 20.0, 70.0), "0.000000 0.600000 0.200000 1.000000"),
        ((110.0, 40.0, 120.0, 60.0), "1.000000 1.000000 1.000000 1.000000"),
    ],
)
def test_shares_are_from_0_to_1(bbox: tuple[float, float, float, float], expected: str) -> None:
    image = ExportImage(1, "a/b.jpg", "b.jpg", width=100, height=50)
    assert _coordinates(DetectionRecord(1, "disc", 0.9, bbox, None, None), image, ExportStyle()) == expected
