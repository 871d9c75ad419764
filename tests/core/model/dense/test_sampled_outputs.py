"""Outputs of some anchors, with their gradients, are those of the whole head."""

import copy

import pytest
import torch

from maskrcnn_core.model.dense.sampled_outputs import outputs_at
from maskrcnn_core.model.dense.shared_head import SharedHead

SHAPES = ((5, 7), (3, 4), (1, 2))
ANCHORS = 3
TOTAL = ANCHORS * sum(height * width for height, width in SHAPES)


def maps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 8, *shape, generator=generator).to(memory_format=torch.channels_last).requires_grad_()
        for shape in SHAPES
    ]


def head(convs: int = 1, num_classes: int = 1) -> SharedHead:
    torch.manual_seed(1)
    made = SharedHead(8, ANCHORS, convs, num_classes)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def at(made: SharedHead, features: list[torch.Tensor], index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`SharedHead.at` of a head with one convolution, in the shapes of a GPU."""
    conv = made.convs[0]
    assert isinstance(conv, torch.nn.Conv2d)
    return outputs_at(conv, made.logits, made.deltas, ANCHORS, features, index, fixed_size=True)


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize(("convs", "fixed_size"), [(1, False), (1, True), (2, False)])
@pytest.mark.parametrize("index", [torch.arange(TOTAL).repeat(2, 1), torch.tensor([[0, 5, 5], [104, 3, 100]])])
def test_outputs_and_gradients_are_those_of_the_convolutions(
    convs: int, fixed_size: bool, index: torch.Tensor, num_classes: int
) -> None:
    sparse, dense = maps(), maps()
    one = head(convs, num_classes)
    other = copy.deepcopy(one)
    logits, deltas = at(one, sparse, index) if fixed_size else one.at(sparse, index)
    outputs, images = other(dense), torch.arange(2)[:, None]
    wanted = torch.cat(outputs.logits, dim=1)[images, index], torch.cat(outputs.deltas, dim=1)[images, index]
    assert logits.shape == (*index.shape, num_classes)
    torch.testing.assert_close(logits, wanted[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(deltas, wanted[1], atol=1e-5, rtol=1e-5)
    (logits.square().sum() + deltas.sin().sum()).backward()
    (wanted[0].square().sum() + wanted[1].sin().sum()).backward()
    for ours, theirs in zip((*sparse, *one.parameters()), (*dense, *other.parameters()), strict=True):
        assert ours.grad is not None  # also of a level without a sample: processes wait for every gradient
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fixed_size", [False, True])
def test_what_lies_outside_of_the_map_counts_as_zero_even_beside_infinity(fixed_size: bool) -> None:
    features = [level.detach().clone() for level in maps()]
    features[0][0, :, 0, 0] = torch.inf  # the cell that stands in for those outside
    index = torch.tensor([[TOTAL - 1], [TOTAL - 1]])
    logits, _ = at(head(), features, index) if fixed_size else head().at(features, index)
    assert torch.isfinite(logits).all()
