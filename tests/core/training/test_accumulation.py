"""A batch in pieces gives the gradients of the whole batch, whatever each piece holds."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from maskrcnn_core.config.heads import KeypointHeadConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.data.targets import ImageTargets, pad_targets, targets_from_dense
from maskrcnn_core.data.transform import pad_batch
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.model.detector import Detector
from maskrcnn_core.structures import ImageBatch, Targets
from maskrcnn_core.training.accumulation import accumulate_gradients
from maskrcnn_core.training.optimizer import build_optimizer
from maskrcnn_core.training.step import training_step
from tests.core.model.test_detector import CONFIG


def objects(count: int, size: tuple[int, int], seed: int) -> ImageTargets:
    generator = torch.Generator().manual_seed(seed)
    corner = (torch.rand(count, 2, generator=generator) * 60).round()
    boxes = torch.cat((corner, corner + (torch.rand(count, 2, generator=generator) * 25 + 8).round()), dim=1)
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    found = targets_from_dense(boxes, torch.arange(count) % 3, masks)
    points = torch.cat((boxes[:, :2] + 3.0, torch.full((count, 1), 2.0)), dim=1)
    return ImageTargets(**{**vars(found), "keypoints": points[:, None].repeat(1, 2, 1)})


def batch() -> tuple[ImageBatch, Targets]:
    """Images with nothing, one and many objects, so that no two pieces have as many samples."""
    sizes = [(96, 96), (90, 120), (96, 128), (64, 96)]
    generator = torch.Generator().manual_seed(0)
    images = pad_batch([torch.randn(3, *size, generator=generator) for size in sizes], sizes, 32)
    counts = (0, 1, 9, 3)
    return images, pad_targets([objects(n, size, n) for n, size in zip(counts, sizes, strict=True)])


@pytest.fixture(scope="module")
def detector() -> Detector:
    config = ModelConfig(
        **{
            **vars(CONFIG),
            "categories": (Category(1, "person"), Category(5, "square"), Category(9, "cross")),
            "keypoint_head": KeypointHeadConfig(enabled=True, channels=8, layers=1, names=("left_a", "right_a")),
        }
    )
    torch.manual_seed(0)
    return build_detector(config, load_pretrained=False).train()


@pytest.mark.parametrize("pieces", [3, 9])
def test_gradients_and_losses_are_those_of_the_whole_batch(detector: Detector, pieces: int) -> None:
    results = []
    for accumulate in (1, pieces):
        model = copy.deepcopy(detector)
        images, targets = batch()
        targets = Targets(**{**vars(targets), "seeds": torch.tensor([5, 6, 7, 8])})
        optimizer = build_optimizer(model, learning_rate=0.0, momentum=0.9, weight_decay=0.0)
        found = training_step(model, images, targets, optimizer, learning_rate=0.0, accumulate=accumulate)
        results.append((found, {name: p.grad for name, p in model.named_parameters()}))
    (whole, expected), (parts, gradients) = results
    assert parts.names == whole.names
    assert len(whole.names) == 6
    torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-5, atol=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).abs().max() <= 1e-5 * max(scale, 1.0), name


def _rows_of(structure: Any, rows: slice) -> Any:
    return replace(structure, **{k: v[rows] for k, v in vars(structure).items() if isinstance(v, torch.Tensor)})


def test_means_of_means_would_be_something_else(detector: Detector) -> None:
    """What the test above could not tell if every piece had equally many samples."""
    images, targets = batch()
    targets = Targets(**{**vars(targets), "seeds": torch.tensor([5, 6, 7, 8])})
    with torch.no_grad():
        whole = detector(images, targets)["roi_mask"]
        halves = []
        for rows in (slice(0, 2), slice(2, 4)):
            part = [_rows_of(structure, rows) for structure in (images, targets)]
            halves.append(detector(*part)["roi_mask"])
    assert abs(whole - sum(halves) / 2) > 1e-3


def test_each_divisor_is_the_count_of_the_whole_batch(detector: Detector) -> None:
    """`count` is called once for the whole batch, with the counts of a batch that is not in pieces."""
    images, targets = batch()
    targets = Targets(**{**vars(targets), "seeds": torch.tensor([5, 6, 7, 8])})
    asked: list[list[int]] = []
    for pieces in (1, 2, 4):

        def count(counts: torch.Tensor) -> torch.Tensor:
            asked.append(counts.tolist())
            return counts.clamp(min=1)

        accumulate_gradients(copy.deepcopy(detector), images, targets, None, pieces=pieces, count=count)
    assert len(asked) == 3
    assert asked[0] == asked[1] == asked[2]
    objectness, rpn_box, roi_class, roi_box, mask, keypoint = asked[0]
    assert objectness == rpn_box  # anchors
    assert roi_class == roi_box  # regions
    assert min(objectness, roi_class, mask, keypoint) > 0


def test_without_seeds_both_passes_draw_the_same(detector: Detector) -> None:
    model = copy.deepcopy(detector)
    optimizer = build_optimizer(model, learning_rate=0.0, momentum=0.9, weight_decay=0.0)
    found = training_step(model, *batch(), optimizer, learning_rate=0.0, accumulate=2)
    assert torch.isfinite(found.losses).all()
    again = training_step(copy.deepcopy(detector), *batch(), optimizer, learning_rate=0.0, accumulate=2)
    assert not torch.equal(again.losses, found.losses)  # each step draws anew
