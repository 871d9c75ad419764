"""Heatmaps to places and back, left and right: by eye, against torchvision, against slow references."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypoints_to_heatmap

from maskrcnn_core.keypoints import (
    _INTERVALS_ON_A_GPU,
    _find_maxima,
    decode_heatmaps,
    encode_heatmaps,
    mirror_keypoints,
    pixel_offset,
    scale_keypoints,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(number: int, low: float, high: float, seed: int) -> Tensor:
    corners = torch.rand(number, 2, generator=generator(seed)) * 100 - 20
    return torch.cat((corners, corners + low + torch.rand(number, 2, generator=generator(seed + 1)) * (high - low)), 1)


def realistic_maps(number: int, keypoints: int, seed: int, side: int = 56) -> Tensor:
    """Two blobs and a little noise on half the side, enlarged bilinearly, as the head does."""
    source, half = generator(seed), side // 2
    low = torch.randn(number, keypoints, half, half, generator=source) * 0.3
    y, x = torch.meshgrid(torch.arange(half) + 0.0, torch.arange(half) + 0.0, indexing="ij")
    for _ in range(2):
        centre = torch.rand(number, keypoints, 2, 1, 1, generator=source) * half
        width = 0.7 + torch.rand(number, keypoints, 1, 1, generator=source) * 3
        height = torch.rand(number, keypoints, 1, 1, generator=source) * 12
        low += height * (-((x - centre[:, :, 0]) ** 2 + (y - centre[:, :, 1]) ** 2) / (2 * width**2)).exp()
    return functional.interpolate(low, scale_factor=2.0, mode="bilinear")


def noise(number: int, keypoints: int, seed: int) -> Tensor:
    return torch.randn(number, keypoints, 56, 56, generator=generator(seed))


def enlarged_noise(number: int, keypoints: int, seed: int) -> Tensor:
    coarse = torch.randn(number, keypoints, 28, 28, generator=generator(seed))
    return functional.interpolate(coarse, scale_factor=2.0, mode="bilinear")


def smooth(number: int, keypoints: int, seed: int) -> Tensor:
    coarse = torch.randn(number, keypoints, 6, 6, generator=generator(seed))
    return functional.interpolate(coarse, size=56, mode="bicubic")


@pytest.mark.parametrize(("low", "high"), [(0.3, 8.0), (8.0, 60.0), (60.0, 300.0)])
@pytest.mark.parametrize("make", [realistic_maps, noise, enlarged_noise, smooth])
def test_places_and_scores_are_torchvisions(make: Callable[..., Tensor], low: float, high: float) -> None:
    maps = make(25, 3, 7)
    boxes = random_boxes(25, low, high, seed=3)
    expected, scores = heatmaps_to_keypoints(maps, boxes)
    points, logits = decode_heatmaps(maps, boxes)
    torch.testing.assert_close(logits, scores, atol=1e-4, rtol=1e-4)
    far = (points[..., :2] - expected[..., :2]).abs().amax(dim=-1) > 1e-3
    # Two pixels may hold the maximum to the last bit; then rounding decides which. Hardly ever.
    assert far.float().mean() < 0.02
    for region, keypoint in far.nonzero().tolist():
        value, best = value_at(maps[region, keypoint], boxes[region], points[region, keypoint])
        assert value > best - 1e-4


def value_at(heatmap: Tensor, box: Tensor, point: Tensor) -> tuple[float, float]:
    """The resized map's value at a place, and its maximum."""
    width, height = (box[2:] - box[:2]).clamp(min=1).ceil().int().tolist()
    resized = functional.interpolate(heatmap[None, None], size=(height, width), mode="bicubic")[0, 0]
    column, row = ((point[:2] - box[:2]) / (box[2:] - box[:2]).clamp(min=1) * torch.tensor([width, height])).int()
    return float(resized[row, column]), float(resized.max())


def test_a_peak_by_eye() -> None:
    # A region of 56 x 28 pixels at (10, 20), so that a cell is 1 pixel wide and half a pixel high. The peak in cell
    # (row 8, column 30) is at rows 4 to 4.5: pixel row 4, whose middle is 4.5; pixel column 30, whose middle is 30.5.
    maps = torch.zeros(1, 1, 56, 56)
    maps[0, 0, 8, 30] = 5.0
    points, logits = decode_heatmaps(maps, torch.tensor([[10.0, 20, 66, 48]]))
    assert points[0, 0, :2].tolist() == [40.5, 24.5]
    # The pixel's centre lies midway between the cells 8 and 9: cubic weight 0.59375 of the 5.
    assert float(logits) == pytest.approx(0.59375 * 5, abs=1e-4)
    softmax = torch.cat((logits.flatten(), maps.flatten())).exp()
    assert float(points[0, 0, 2]) == pytest.approx(float(softmax[0] / softmax[1:].sum()), rel=1e-4)


def test_a_certain_keypoint_has_probability_one_at_most() -> None:
    maps = torch.full((1, 1, 56, 56), -50.0)
    maps[0, 0, 10:12, 10:12] = 50.0  # a cubic interpolation rises above both
    points, logits = decode_heatmaps(maps, torch.tensor([[0.0, 0, 200, 200]]))
    assert float(logits) > 50
    assert float(points[..., 2]) == 1.0


@pytest.mark.parametrize("fixed_size", [False, True])
def test_of_equal_maxima_the_first_in_reading_order(fixed_size: bool) -> None:
    maps = torch.zeros(2, 1, 56, 56)
    maps[0, 0, 20, 40] = maps[0, 0, 30, 10] = 1.0
    boxes = torch.tensor([[0.0, 0, 56, 56]]).repeat(2, 1)
    points, logits = decode_heatmaps(maps, boxes, max_side=56, fixed_size=fixed_size)
    assert points[0, 0, :2].tolist() == [40.5, 20.5]
    # A map that is zero all over has its maximum everywhere; a GPU, which looks at some places, may name any.
    assert logits.tolist() == [[1.0], [0.0]]
    if not fixed_size:
        assert points[1, 0, :2].tolist() == [0.5, 0.5]
    assert ((points[..., :2] > 0) & (points[..., :2] < 56)).all()


@pytest.mark.parametrize("make", [realistic_maps, enlarged_noise])
@pytest.mark.parametrize("high", [60.0, 400.0])
def test_what_a_gpu_looks_at_holds_the_maximum(make: Callable[..., Tensor], high: float) -> None:
    maps = make(100, 3, 11).flatten(0, 1)
    pixels = (torch.rand(300, 2, generator=generator(5)) * high).clamp(min=1).ceil()
    step = -(-int(pixels.max()) // 56) + 1
    every, some = (_find_maxima(maps, pixels, step, intervals) for intervals in (None, _INTERVALS_ON_A_GPU))
    torch.testing.assert_close(some[0], every[0], atol=1e-5, rtol=0)


def test_nothing_to_decode() -> None:
    points, logits = decode_heatmaps(torch.zeros(0, 17, 56, 56), torch.zeros(0, 4))
    assert points.shape == (0, 17, 3)
    assert logits.shape == (0, 17)
    points, _ = decode_heatmaps(torch.zeros(2, 1, 56, 56), torch.zeros(2, 4))  # empty boxes count as a pixel
    assert points[..., :2].tolist() == [[[0.5, 0.5]]] * 2


def test_half_precision_and_autocast_change_nothing() -> None:
    maps, boxes = realistic_maps(4, 2, 0).bfloat16(), random_boxes(4, 30, 90, 0)
    expected, _ = decode_heatmaps(maps.float(), boxes)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = decode_heatmaps(maps, boxes)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_cells_are_torchvisions() -> None:
    source = generator(0)
    boxes = random_boxes(50, 3, 90, 1)
    keypoints = torch.cat((torch.rand(50, 17, 2, generator=source) * 120 - 20, torch.ones(50, 17, 1)), dim=2)
    keypoints[..., 2] = torch.randint(0, 3, (50, 17), generator=source)
    keypoints[:, 0, :2], keypoints[:, 1, :2], keypoints[:, 2, :2] = boxes[:, :2], boxes[:, 2:], boxes[:, [0, 3]]
    keypoints[:, :3, 2] = 2
    expected, valid = keypoints_to_heatmap(keypoints, boxes, 56)
    cells, counted = encode_heatmaps(keypoints, boxes, 56)
    assert torch.equal(counted, valid.bool())
    assert torch.equal(cells, expected)
    assert 0.05 < counted.float().mean() < 0.95


def test_cells_by_eye() -> None:
    # A region of 56 x 112 pixels at (10, 20): a cell is 1 x 2 pixels (width x height).
    box = torch.tensor([[10.0, 20, 66, 132]])
    keypoints = torch.tensor([[[13.9, 25, 2], [66, 132, 1], [9.9, 30, 2], [20, 30, 0]]])
    cells, counted = encode_heatmaps(keypoints, box, 56)
    assert cells.tolist() == [[2 * 56 + 3, 56 * 56 - 1, 0, 0]]
    assert counted.tolist() == [[True, True, False, False]]


def test_cells_of_nothing_and_of_an_empty_region() -> None:
    cells, counted = encode_heatmaps(torch.zeros(0, 17, 3), torch.zeros(0, 4), 56)
    assert cells.shape == counted.shape == (0, 17)
    cells, counted = encode_heatmaps(torch.tensor([[[5.0, 5, 2], [0, 0, 2]]]), torch.zeros(1, 4), 56)
    assert int(cells.min()) >= 0
    assert counted.tolist() == [[False, True]]


def test_what_is_encoded_is_decoded() -> None:
    boxes = random_boxes(40, 40, 300, 2)
    sides = boxes[:, None, 2:] - boxes[:, None, :2]
    places = boxes[:, None, :2] + torch.rand(40, 5, 2, generator=generator(3)) * sides
    keypoints = torch.cat((places, torch.full((40, 5, 1), 2.0)), dim=2)
    cells, counted = encode_heatmaps(keypoints, boxes, 56)
    assert counted.all()
    points, _ = decode_heatmaps(10.0 * functional.one_hot(cells, 56 * 56).view(40, 5, 56, 56), boxes)
    # The maximum lies in the keypoint's cell, wherever in it, or half a pixel beside it.
    assert ((points[..., :2] - places).abs() <= sides / 56 + 0.501).all()


def test_left_and_right_change_places() -> None:
    assert mirror_keypoints(("nose", "left_eye", "right_eye", "left_fin")) == (0, 2, 1, 3)
    assert mirror_keypoints(("L_Hip", "R_Hip", "eye (left)", "eye (right)", "Left Toe", "Right Toe")) == (
        *(1, 0, 3, 2, 5, 4),
    )
    assert mirror_keypoints(("bright", "blight", "tail", "trail")) == (0, 1, 2, 3)
    assert mirror_keypoints(()) == ()


def test_half_a_pixel() -> None:
    assert (pixel_offset("exact"), pixel_offset("torchvision")) == (0.5, 0.0)


def test_scaled() -> None:
    keypoints = torch.tensor([[[[10.0, 10, 0.5]]], [[[4, 6, 0.1]]]])
    sizes, others = torch.tensor([[20, 40], [10, 10]]), torch.tensor([[10, 80], [10, 5]])
    assert scale_keypoints(keypoints, sizes, others)[:, 0, 0, :2].tolist() == [[20, 5], [2, 6]]
    assert scale_keypoints(keypoints, sizes, others)[:, 0, 0, 2].tolist() == pytest.approx([0.5, 0.1])
    assert scale_keypoints(torch.zeros(2, 0, 17, 3), sizes, others).shape == (2, 0, 17, 3)
