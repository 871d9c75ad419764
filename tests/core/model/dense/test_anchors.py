"""Anchors by eye and against torchvision's generator."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from maskrcnn_core.model.dense.anchors import (
    OctaveAnchors,
    RatioAnchors,
    base_anchors,
    grid_anchors,
    pyramid_anchors,
)

SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
RATIOS = (0.5, 1.0, 2.0)
STRIDES = (4, 8, 16, 32, 64)


def shapes_of(height: int, width: int) -> list[tuple[int, int]]:
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]


def test_base_anchors_by_eye() -> None:
    # Side 8: ratio 1 is 8 x 8; ratio 4 is 16 high and 4 wide; ratio 1/4 is 4 high and 16 wide.
    anchors = base_anchors(8.0, (1.0, 4.0, 0.25), rounded=False)
    assert anchors.tolist() == [[-4, -4, 4, 4], [-2, -8, 2, 8], [-8, -2, 8, 2]]


def test_rounding_by_eye() -> None:
    # Ratio 2, side 32: 45.25 high, 22.63 wide -> halves 22.63 and 11.31.
    assert base_anchors(32.0, (2.0,), rounded=True).tolist() == [[-11, -23, 11, 23]]
    exact = base_anchors(32.0, (2.0,), rounded=False)[0]
    torch.testing.assert_close(exact, torch.tensor([-11.3137, -22.6274, 11.3137, 22.6274]))


def test_grid_by_eye() -> None:
    # Two rows 10 apart, two columns 5 apart, two anchors: rows outermost, anchors innermost.
    base = torch.tensor([[-1.0, -1, 1, 1], [-2, -1, 2, 1]])
    assert grid_anchors(base, (2, 2), (10, 5)).tolist() == [
        [-1, -1, 1, 1],
        [-2, -1, 2, 1],
        [4, -1, 6, 1],
        [3, -1, 7, 1],
        [-1, 9, 1, 11],
        [-2, 9, 2, 11],
        [4, 9, 6, 11],
        [3, 9, 7, 11],
    ]


def test_strides_are_nominal_or_fitted() -> None:
    height, width = 320, 480  # P6 is 5 x 8, and 480 / 8 = 60
    for fitted, step in ((False, 64.0), (True, 60.0)):
        rule = RatioAnchors(SIZES, (1.0,), rounded=False, fitted_strides=fitted)
        coarsest = pyramid_anchors(rule, STRIDES, shapes_of(height, width), (height, width), torch.device("cpu"))[-1]
        assert len(coarsest) == 40
        assert float(coarsest[1, 0] - coarsest[0, 0]) == step
        assert float(coarsest[8, 1] - coarsest[0, 1]) == 64.0


@pytest.mark.parametrize("size", [(320, 480), (64, 64), (256, 800), (96, 352)])
def test_rounded_and_fitted_are_torchvisions(size: tuple[int, int]) -> None:
    generator = AnchorGenerator(tuple((int(s),) for s in SIZES), (RATIOS,) * 5)
    maps = [torch.zeros(1, 1, *shape) for shape in shapes_of(*size)]
    expected = generator(ImageList(torch.zeros(1, 3, *size), [size]), maps)[0]
    rule = RatioAnchors(SIZES, RATIOS, rounded=True, fitted_strides=True)
    got = pyramid_anchors(rule, STRIDES, shapes_of(*size), size, torch.device("cpu"))
    assert [len(level) for level in got] == [3 * h * w for h, w in shapes_of(*size)]
    assert torch.equal(torch.cat(got), expected)


def test_an_offset_by_eye() -> None:
    # Cells of 10 x 5 pixels, half a cell in: (5, 2.5) and (5, 7.5).
    assert grid_anchors(torch.tensor([[-1.0, -1, 1, 1]]), (1, 2), (10, 5), 0.5).tolist() == [
        [1.5, 4, 3.5, 6],
        [6.5, 4, 8.5, 6],
    ]


def test_octaves_by_eye() -> None:
    # Two steps from 8: 8 and 11.3, each in both ratios; cut to whole pixels 8 and 11.
    rule = OctaveAnchors((8.0,), (1.0, 4.0), 2, whole_sizes=False, rounded=False, fitted_strides=False)
    (base,) = rule.bases(1)
    assert rule.per_level(1) == (4,)
    half = 4 * 2**0.5
    expected = [[-4, -4, 4, 4], [-2, -8, 2, 8], [-half, -half, half, half], [-half / 2, -2 * half, half / 2, 2 * half]]
    torch.testing.assert_close(base, torch.tensor(expected))
    whole = OctaveAnchors((8.0,), (1.0,), 2, whole_sizes=True, rounded=False, fitted_strides=False)
    assert whole.bases(1)[0].tolist() == [[-4, -4, 4, 4], [-5.5, -5.5, 5.5, 5.5]]


def test_octaves_are_torchvisions_retinanet() -> None:
    strides, size = (8, 16, 32, 64, 128), (256, 320)
    shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]
    steps = [(int(x), int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in SIZES]
    generator = AnchorGenerator(tuple(steps), (RATIOS,) * 5)
    expected = generator(ImageList(torch.zeros(1, 3, *size), [size]), [torch.zeros(1, 1, *shape) for shape in shapes])[
        0
    ]
    rule = OctaveAnchors(SIZES, RATIOS, 3, whole_sizes=True, rounded=True, fitted_strides=True)
    got = torch.cat(pyramid_anchors(rule, strides, shapes, size, torch.device("cpu")))
    # Theirs by ratio, then by size.
    assert got.unflatten(0, (-1, 3, 3)).transpose(1, 2).flatten(0, 2).equal(expected)
