"""Position-sensitive pooling and align: nested loops, torchvision's operators with their gradients, and R-FCN's own
rounding; and what a convolution of score maps and a vote make of them."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import ps_roi_align, ps_roi_pool

from maskrcnn_core.model.heads.voting import VotingHead
from maskrcnn_core.model.regions.levels import LevelRule
from maskrcnn_core.model.regions.position_sensitive import PositionSensitiveScores, Rounding, position_sensitive_pool
from maskrcnn_core.structures import ImageFeatures
from tests.core.model.regions.roi_reference import BOXES, IMAGES, OUTSIDE, STRIDES, pyramid, rounded, sampled

BINS = 3
CHANNELS = 2 * BINS**2
REGIONS = torch.cat((IMAGES[:, None].double(), BOXES), dim=1)


def slow_pool(features: Tensor, box: list[float], stride: int, rounding: Rounding) -> Tensor:
    """One region, in input pixels, as R-FCN's layer and torchvision's have it: [C, bins, bins]."""
    if rounding == "caffe":
        left, top, right, bottom = (rounded(value) / stride for value in box)
        least = 0.1
    else:
        left, top, right, bottom = (float(rounded(value / stride)) for value in box)
        least = 1.0
    # torchvision's operator ends before the last row and column of the map.
    end = 1 if rounding == "torchvision" else 0
    height, width = max(bottom - top, least) / BINS, max(right - left, least) / BINS
    output = torch.zeros(len(features) // BINS**2, BINS, BINS, dtype=features.dtype)
    for c in range(len(output)):
        for i in range(BINS):
            for j in range(BINS):
                rows = range(math.floor(top + i * height), math.ceil(top + (i + 1) * height))
                columns = range(math.floor(left + j * width), math.ceil(left + (j + 1) * width))
                cells = [
                    features[(c * BINS + i) * BINS + j, row, column]
                    for row in rows
                    for column in columns
                    if 0 <= row < features.shape[1] - end and 0 <= column < features.shape[2] - end
                ]
                if cells:
                    output[c, i, j] = torch.stack(cells).mean()
    return output


def slow_align(features: Tensor, box: list[float], stride: int, samples: int) -> Tensor:
    """The same of position-sensitive RoIAlign."""
    x1, y1, x2, y2 = (value / stride - 0.5 for value in box)
    height, width = (y2 - y1) / BINS, (x2 - x1) / BINS
    output = torch.zeros(len(features) // BINS**2, BINS, BINS, dtype=features.dtype)
    for c in range(len(output)):
        for i in range(BINS):
            for j in range(BINS):
                own = features[(c * BINS + i) * BINS + j][None]
                values = [
                    sampled(own, y1 + (i + (a + 0.5) / samples) * height, x1 + (j + (b + 0.5) / samples) * width)
                    for a in range(samples)
                    for b in range(samples)
                ]
                output[c, i, j] = torch.stack(values).mean()
    return output


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("rounding", ["caffe", "torchvision"])
def test_pool_is_the_slow_reference(rounding: Rounding, level: int) -> None:
    features, stride = pyramid(CHANNELS)[level], STRIDES[level]
    got = position_sensitive_pool(features, REGIONS, stride, BINS, rounding)
    for region, (box, image) in enumerate(zip(BOXES, IMAGES, strict=True)):
        expected = slow_pool(features[image], box.tolist(), stride, rounding)
        torch.testing.assert_close(got[region], expected, atol=1e-10, rtol=1e-10)
    assert not got[OUTSIDE].any()


def test_gradients_of_caffes_rounding_are_torchvisions() -> None:
    """Where both round to the same cells: corners on cells."""
    stride, features = 8, pyramid(CHANNELS)[1].requires_grad_()
    boxes = torch.tensor([[8.0, 16, 80, 64], [0, 0, 192, 128], [40, 40, 64, 64], [96, 8, 152, 120]])
    regions = torch.cat((torch.tensor([[0.0], [1], [1], [0]]), boxes), dim=1).double()
    weights = torch.randn(4, 2, BINS, BINS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = []
    for output in (
        position_sensitive_pool(features, regions, stride, BINS, "caffe"),
        ps_roi_pool(features, regions, BINS, 1 / stride),
    ):
        grads.append(torch.autograd.grad((output * weights).sum(), features)[0])
    torch.testing.assert_close(grads[0], grads[1], atol=1e-10, rtol=1e-10)
    assert grads[0].abs().sum() > 0


def test_rounding_by_eye() -> None:
    # Cells of 16 pixels hold their column. Pixels 24 to 56 are cells 1.5 to 3.5 in R-FCN's layer: cells 1 to 3, each
    # whole. torchvision rounds to 2 and 4: cells 2 and 3.
    columns = torch.arange(8.0).expand(1, 1, 8, 8)
    region = torch.tensor([[0.0, 24, 24, 56, 56]])
    assert position_sensitive_pool(columns, region, 16, 1, "caffe").item() == 2.0
    assert position_sensitive_pool(columns, region, 16, 1, "torchvision").item() == 2.5


def module(**settings: object) -> PositionSensitiveScores:
    torch.manual_seed(0)
    made = PositionSensitiveScores(3, 3, 4, BINS, LevelRule(STRIDES, 64.0, 4), **settings)  # type: ignore[arg-type]
    return made.double()


def features_of(maps: list[Tensor]) -> ImageFeatures:
    return ImageFeatures(maps, (4, 8, 16, 32, 64), torch.zeros(2, 2), torch.zeros(2, 3, 128, 192))


@pytest.mark.parametrize("samples", [0, 2])
def test_align_is_the_slow_reference_and_torchvisions(samples: int) -> None:
    features, one_map = pyramid(CHANNELS)[1], LevelRule((8,), 64.0, 4)
    transform = PositionSensitiveScores(3, 1, 1, BINS, one_map, sampling_ratio=samples)
    got = transform([features], BOXES, IMAGES)
    there = (BOXES[:, 2:] > BOXES[:, :2]).all(dim=1) | (samples > 0)
    assert torch.equal(got[there], ps_roi_align(features, REGIONS[there], BINS, 1 / 8, samples))
    assert not got[~there].any()
    for region, (box, image) in enumerate(zip(BOXES, IMAGES, strict=True)) if samples else ():
        expected = slow_align(features[image], box.tolist(), 8, samples)
        torch.testing.assert_close(got[region], expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("sampling_ratio", [None, 2])
@pytest.mark.parametrize("reduced", [0, 5])
def test_scores_come_from_maps_of_their_own_in_one_order(reduced: int, sampling_ratio: int | None) -> None:
    transform = module(reduced=reduced, sampling_ratio=sampling_ratio)
    maps = transform.maps(features_of(pyramid()))
    assert [level.shape[1] for level in maps] == [7 * BINS**2] * 4
    got = transform(maps, BOXES, IMAGES)
    assert got.shape == (len(BOXES), 7, BINS, BINS)
    logits, deltas = VotingHead(2, class_agnostic=True)(got)
    assert (logits.shape, deltas.shape) == ((len(BOXES), 3), (len(BOXES), 1, 4))
    # Channel (c * k + i) * k + j: the vote of one class from its nine maps alone.
    levels = transform.levels.choose(BOXES)
    for region in (0, 1, 2):
        own = maps[int(levels[region])][:, 1 * BINS**2 : 2 * BINS**2]
        alone = PositionSensitiveScores(
            3, 1, 1, BINS, LevelRule((STRIDES[levels[region]],), 64.0, 4), sampling_ratio=sampling_ratio
        )
        votes = alone([own], BOXES[region : region + 1], IMAGES[region : region + 1]).mean()
        torch.testing.assert_close(logits[region, 1], votes)
    empty = transform(maps, BOXES[:0], IMAGES[:0])
    assert [tuple(part.shape) for part in VotingHead(2, class_agnostic=True)(empty)] == [(0, 3), (0, 1, 4)]


@pytest.mark.parametrize("settings", [{}, {"rounding": "torchvision"}, {"sampling_ratio": 2}], ids=str)
def test_gradients_reach_maps_and_weights_in_half_precision_too(settings: dict[str, object]) -> None:
    transform, levels = module(reduced=5, **settings).bfloat16(), pyramid(dtype=torch.float32)
    maps = [level.bfloat16().requires_grad_() for level in levels]
    output = transform(transform.maps(features_of(list(maps))), BOXES.float(), IMAGES)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert all(level.grad is not None and level.grad.any() for level in maps[:1])
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in transform.parameters())


def test_votes_by_eye() -> None:
    scores = torch.zeros(1, 7, 2, 2)
    scores[0, 1] = torch.tensor([[1.0, 2], [3, 6]])
    scores[0, 3:] = torch.tensor([1.0, 2, 3, 4])[:, None, None]
    logits, deltas = VotingHead(2, class_agnostic=True)(scores)
    assert (logits.tolist(), deltas.tolist()) == ([[0, 3, 0]], [[[1, 2, 3, 4]]])
