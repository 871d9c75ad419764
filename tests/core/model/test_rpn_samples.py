import copy

import pytest
import torch

from maskrcnn_core.model.rpn import RPNHead

SHAPES = ((5, 7), (3, 4), (1, 2))
ANCHORS = 3
TOTAL = ANCHORS * sum(height * width for height, width in SHAPES)


def maps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 8, *shape, generator=generator).to(memory_format=torch.channels_last).requires_grad_()
        for shape in SHAPES
    ]


def head(convs: int = 1) -> RPNHead:
    torch.manual_seed(1)
    made = RPNHead(8, ANCHORS, convs)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("convs", [1, 2])
@pytest.mark.parametrize("index", [torch.arange(TOTAL).repeat(2, 1), torch.tensor([[0, 5, 5], [104, 3, 100]])])
def test_outputs_and_gradients_are_those_of_the_convolutions(convs: int, index: torch.Tensor) -> None:
    sparse, dense = maps(), maps()
    one = head(convs)
    other = copy.deepcopy(one)
    logits, deltas = one.at(sparse, index)
    every_logit, every_delta = (torch.cat(outputs, dim=1) for outputs in other(dense))
    wanted = every_logit.gather(1, index), every_delta.gather(1, index[..., None].expand(-1, -1, 4))
    torch.testing.assert_close(logits, wanted[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(deltas, wanted[1], atol=1e-5, rtol=1e-5)
    (logits.square().sum() + deltas.sin().sum()).backward()
    (wanted[0].square().sum() + wanted[1].sin().sum()).backward()
    for ours, theirs in zip((*sparse, *one.parameters()), (*dense, *other.parameters()), strict=True):
        assert ours.grad is not None  # also of a level without a sample: processes wait for every gradient
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_what_lies_outside_of_the_map_counts_as_zero_even_beside_infinity() -> None:
    features = [level.detach().clone() for level in maps()]
    features[0][0, :, 0, 0] = torch.inf  # the cell that stands in for those outside
    logits, _ = head().at(features, torch.tensor([[TOTAL - 1], [TOTAL - 1]]))
    assert torch.isfinite(logits).all()
