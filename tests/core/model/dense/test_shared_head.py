"""The dense head by hand: which channel is which anchor's output, with one class and with several."""

import pytest
import torch
from torch.nn import functional

from maskrcnn_core.model.dense import shared_head as module
from maskrcnn_core.model.dense.head import at_anchors
from maskrcnn_core.model.dense.shared_head import SharedHead
from maskrcnn_core.structures import DenseOutputs

ANCHORS = 3


def head_of(num_classes: int, convs: int = 2) -> SharedHead:
    """Weights so large that every output differs from every other."""
    torch.manual_seed(0)
    head = SharedHead(4, ANCHORS, convs, num_classes)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


@pytest.mark.parametrize("num_classes", [1, 3])
def test_head_is_position_major(num_classes: int) -> None:
    head, features = head_of(num_classes), torch.randn(2, 4, 5, 6)
    outputs = head([features, features[..., :2, :2]])
    assert outputs.objectness is None
    assert [tuple(level.shape) for level in outputs.logits] == [(2, 90, num_classes), (2, 12, num_classes)]
    assert [tuple(level.shape) for level in outputs.deltas] == [(2, 90, 4), (2, 12, 4)]
    x = functional.relu(head.convs[1](functional.relu(head.convs[0](features))))
    # Channels count anchor by anchor, of each anchor class by class.
    scores, moves = head.logits(x), head.deltas(x)
    for image, row, column, anchor in ((1, 3, 4, 2), (0, 0, 1, 0), (1, 4, 5, 1)):
        place = (row * 6 + column) * ANCHORS + anchor
        classes = slice(anchor * num_classes, (anchor + 1) * num_classes)
        torch.testing.assert_close(outputs.logits[0][image, place], scores[image, classes, row, column])
        torch.testing.assert_close(
            outputs.deltas[0][image, place], moves[image, anchor * 4 : anchor * 4 + 4, row, column]
        )


@pytest.mark.parametrize("num_classes", [1, 3])
def test_joined_predictors_are_the_two(num_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU multiplies: one matrix for both predictors, filled up with zeros to a multiple of 16 outputs."""
    head, maps = head_of(num_classes, convs=0), [torch.randn(2, 4, 5, 6), torch.randn(2, 4, 3, 2)]
    expected = head(maps)
    monkeypatch.setattr(module, "use_kernels", lambda *_: True)
    joined = head(maps)
    assert head._joined_predictors()[0].shape == ({1: 16, 3: 32}[num_classes], 4)
    for one, other in zip(joined.logits + joined.deltas, expected.logits + expected.deltas, strict=True):
        torch.testing.assert_close(one, other)


def test_picked_anchors_by_eye() -> None:
    # Two levels of 2 and 1 anchors, 2 classes; one image.
    logits = [torch.tensor([[[1.0, 2], [3, 4]]]), torch.tensor([[[5.0, 6]]])]
    deltas = [torch.tensor([[[0.0, 1, 2, 3], [4, 5, 6, 7]]]), torch.tensor([[[8.0, 9, 10, 11]]])]
    scores, moves = at_anchors(DenseOutputs(logits, deltas), torch.tensor([[2, 0, 2]]))
    assert scores.tolist() == [[[5, 6], [1, 2], [5, 6]]]
    assert moves[..., 0].tolist() == [[8, 0, 8]]
