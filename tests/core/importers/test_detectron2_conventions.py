"""detectron2's conventions in an imported model, each by a number that can be worked out by eye."""

import numpy as np
import pytest
import torch

from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.transform import prepare_input, resized_size
from maskrcnn_core.importers.detectron2 import import_detectron2
from maskrcnn_core.inference.encoding import image_record
from maskrcnn_core.masks import decode_mask, encode_mask
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.dense.anchors import pyramid_anchors
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import Detections
from tests.core.importers.synthetic_models import detectron2_state


def model(pyramid: str = "FPN", kind: str = "mask") -> tuple[ModelConfig, Detector]:
    """Without values: conventions are not in the weights."""
    config, _ = import_detectron2(detectron2_state(pyramid=pyramid, kind=kind, num_classes=1))
    with torch.device("meta"):
        detector = build_detector(config, load_pretrained=False)
    return config, detector


@pytest.fixture(scope="module")
def fpn() -> tuple[ModelConfig, Detector]:
    return model()


@pytest.fixture(scope="module")
def c4() -> tuple[ModelConfig, Detector]:
    return model("C4")


def test_pixels_are_bgr_in_bytes_minus_the_mean(fpn: tuple[ModelConfig, Detector]) -> None:
    rule = fpn[0].input
    red = torch.zeros(3, 2, 2, dtype=torch.uint8)
    red[0] = 255
    pixels = prepare_input(red, (2, 2), rule)
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([0 - 103.53, 0 - 116.28, 255 - 123.675]))


def test_sizes_are_rounded_to_the_nearest(fpn: tuple[ModelConfig, Detector]) -> None:
    """480 x 641 by 800 / 480: 1068.33; 427 x 640: 1199.06; limited at 1333: 500 x 1000 by 1.333: 666.5."""
    rule = fpn[0].input
    for size, expected in (((480, 641), (800, 1068)), ((427, 640), (800, 1199)), ((500, 1000), (667, 1333))):
        assert resized_size(*size, rule.short_side, rule.long_side, rule.resize) == expected


def test_anchors_are_exact_and_start_at_the_corner(fpn: tuple[ModelConfig, Detector]) -> None:
    """Side 32, height / width one half: 45.25 x 22.63 around the corner of the first cell; the next cell 4 further."""
    detector = fpn[1]
    assert detector.dense is not None
    shapes = [(2, 2)] * 5
    anchors = pyramid_anchors(detector.dense.anchors, detector.pyramid.strides, shapes, (64, 64), torch.device("cpu"))
    half = torch.tensor([-22.627417, -11.3137085, 22.627417, 11.3137085])
    torch.testing.assert_close(anchors[0][0], half)
    torch.testing.assert_close(anchors[0][3], half + torch.tensor([4.0, 0, 4, 0]))
    torch.testing.assert_close(anchors[4][0], 16 * half)


def test_one_map_has_all_anchors_by_size_then_ratio(c4: tuple[ModelConfig, Detector]) -> None:
    detector = c4[1]
    assert detector.dense is not None
    (anchors,) = pyramid_anchors(
        detector.dense.anchors, detector.pyramid.strides, [(1, 2)], (16, 32), torch.device("cpu")
    )
    assert len(anchors) == 2 * 15
    widths = (anchors[:15, 2] - anchors[:15, 0]).view(5, 3)
    torch.testing.assert_close(widths[:, 1], torch.tensor([32.0, 64, 128, 256, 512]))
    torch.testing.assert_close(widths[0], torch.tensor([45.254834, 32.0, 22.627417]))
    torch.testing.assert_close(anchors[15], anchors[0] + torch.tensor([16.0, 0, 16, 0]))


def test_regions_are_sampled_at_pixel_centres(c4: tuple[ModelConfig, Detector]) -> None:
    """A map whose value is its column, stride 16: cell j lies at pixel 16 j + 8. A box from 80 to 304 in 14 bins of 16:
    the first bin's centre, pixel 88, is cell 5."""
    regions = c4[1].regions
    assert regions is not None
    transform = regions.box.transform
    columns = torch.arange(40.0).expand(1, 1, 40, 40).contiguous()
    features = transform([columns], torch.tensor([[80.0, 80, 304, 304]]), torch.tensor([0]))
    torch.testing.assert_close(features[0, 0, 0], torch.arange(5.0, 19.0))


def test_regions_are_sampled_once_for_each_cell(c4: tuple[ModelConfig, Detector]) -> None:
    """Bins of 6 x 6 cells and one bright column, the first cell of the third bin: a sixth of its samples see it.

    Two samples a side, at the middles of the bin's halves, would not.
    """
    regions = c4[1].regions
    assert regions is not None
    transform = regions.box.transform
    bright = torch.zeros(1, 1, 90, 90)
    bright[..., 6 * 2 + 2] = 1.0  # the box begins at cell 2
    side = 14 * 6 * 16.0
    features = transform([bright], torch.tensor([[32.0, 32, 32 + side, 32 + side]]), torch.tensor([0]))
    expected = torch.zeros(14)
    expected[2] = 1 / 6
    torch.testing.assert_close(features[0, 0, 0], expected)


def test_masks_are_pasted_at_exact_pixel_centres(fpn: tuple[ModelConfig, Detector]) -> None:
    """A 2 x 2 mask, left half on, over 5 pixels: pixel centres 0.5, 1.5, 2.5 of 5 see 0.7 (the border is empty), 0.9
    and 0.5 of it."""
    head = fpn[0].mask_head
    soft = np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    box = np.array([1.0, 0.0, 6.0, 40.0], dtype=np.float32)
    counts = encode_mask(soft, box, 40, 8, rule=head.paste, threshold=head.threshold)
    middle_row = decode_mask(counts, 40, 8)[20]
    assert middle_row.tolist() == [False, True, True, True, False, False, False, False]


def test_keypoints_lose_half_a_pixel_in_the_record() -> None:
    config, _ = model(kind="keypoint")
    points = torch.tensor([10.5, 20.5, 0.75]).expand(1, 1, 17, 3)
    found = Detections(
        boxes=torch.tensor([[[0.0, 0, 40, 40]]]),
        scores=torch.tensor([[0.9]]),
        labels=torch.tensor([[0]]),
        count=torch.tensor([1]),
        keypoints=points,
    )
    (detection,) = image_record(found, 0, (50, 50), config).detections
    assert detection.keypoints is not None
    assert detection.keypoints[:2] == (10.0, 20.0)
