"""From outputs to scores, by eye and against sorting everything."""

import pytest
import torch

from maskrcnn_core.model.dense.scores import best_anchors, best_pairs, level_scores
from maskrcnn_core.structures import DenseOutputs


def outputs(num_images: int = 2, num_classes: int = 3) -> DenseOutputs:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_images, 7, num_classes, generator=generator)
    return DenseOutputs([logits], [torch.zeros(num_images, 7, 4)], [torch.randn(num_images, 7, generator=generator)])


def test_by_eye() -> None:
    half = DenseOutputs(
        [torch.tensor([[[0.0, 0.0, torch.tensor(2.0).log()]]])], [torch.zeros(1, 1, 4)], [torch.zeros(1, 1)]
    )
    torch.testing.assert_close(level_scores(half, 0, "sigmoid"), torch.tensor([[[0.5, 0.5, 2 / 3]]]))
    torch.testing.assert_close(
        level_scores(half, 0, "softmax"), torch.tensor([[[0.25, 0.25]]])
    )  # of the background 1/2
    torch.testing.assert_close(level_scores(half, 0, "centreness"), torch.tensor([[[0.5, 0.5, (1 / 3) ** 0.5]]]))


@pytest.mark.parametrize("score_from", ["sigmoid", "softmax", "centreness"])
@pytest.mark.parametrize("most", [1, 5, 1000])
def test_the_best_are_those_of_all_sorted(score_from: str, most: int) -> None:
    given = outputs()
    every = level_scores(given, 0, score_from)
    scores, anchors, labels = best_pairs(given, 0, most, score_from)
    assert scores.shape == anchors.shape == labels.shape == (2, min(most, every[0].numel()))
    torch.testing.assert_close(scores, every.flatten(1).sort(dim=1, descending=True).values[:, :most])
    image = torch.arange(2)[:, None]
    torch.testing.assert_close(every[image, anchors, labels], scores)
    scores, anchors = best_anchors(given, 0, most, score_from)
    torch.testing.assert_close(scores, every.amax(dim=2).sort(dim=1, descending=True).values[:, :most])
    torch.testing.assert_close(every.amax(dim=2).gather(1, anchors), scores)


@pytest.mark.parametrize("score_from", ["sigmoid", "softmax", "centreness"])
@pytest.mark.parametrize("above", [0.1, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("most", [2, 1000])
def test_only_those_that_are_of_use(score_from: str, above: float, most: int) -> None:
    given = outputs()
    expected, got = best_pairs(given, 0, most, score_from), best_pairs(given, 0, most, score_from, above=above)
    for image in range(2):
        useful, others = expected[0][image] > above, got[0][image] > above
        for values, other in zip(expected, got, strict=True):
            torch.testing.assert_close(other[image][others], values[image][useful])


@pytest.mark.parametrize("score_from", ["sigmoid", "softmax", "centreness"])
def test_no_images_and_half_precision(score_from: str) -> None:
    given = outputs(num_images=0)
    assert best_pairs(given, 0, 5, score_from, above=0.5)[0].shape == (0, 1)
    assert best_pairs(given, 0, 5, score_from)[0].shape == best_anchors(given, 0, 5, score_from)[0].shape == (0, 5)
    full = outputs()
    assert full.objectness is not None
    logits, deltas, objectness = (
        [level.bfloat16() for level in levels] for levels in (full.logits, full.deltas, full.objectness)
    )
    half = DenseOutputs(logits, deltas, objectness)
    assert level_scores(half, 0, score_from).dtype == best_pairs(half, 0, 5, score_from)[0].dtype == torch.float32
    assert best_anchors(half, 0, 5, score_from)[0].dtype == torch.float32
