"""The head with two towers against torchvision's, and its shape and beginning."""

import pytest
import torch
from torch import nn

from maskrcnn_core.model.dense.head import at_anchors
from maskrcnn_core.model.dense.tower_head import TowerHead

MAPS = [torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(0)) for size in ((5, 6), (3, 3), (1, 1))]


@pytest.mark.parametrize("norm", ["none", "group"])
@pytest.mark.parametrize("objectness", [False, True])
def test_outputs(norm: str, objectness: bool) -> None:
    torch.manual_seed(0)
    head = TowerHead(8, 3, 2, 5, norm=norm, norm_bias=True, objectness=objectness)
    outputs = head(MAPS)
    sizes = [5 * 6 * 3, 3 * 3 * 3, 3]
    assert [level.shape for level in outputs.logits] == [(2, size, 5) for size in sizes]
    assert [level.shape for level in outputs.deltas] == [(2, size, 4) for size in sizes]
    assert (outputs.objectness is not None) == objectness
    if outputs.objectness is not None:
        assert [level.shape for level in outputs.objectness] == [(2, size) for size in sizes]
    index = torch.tensor([[0, 95, 119], [119, 3, 100]])
    for got, expected in zip(head.at(MAPS, index), at_anchors(outputs, index), strict=True):
        assert got.equal(expected)


def test_each_level_is_seen_by_the_same_towers_by_hand() -> None:
    """Anchor 1 of the last cell of the first level: the second group of channels there."""
    torch.manual_seed(0)
    head = TowerHead(8, 2, 1, 3)
    outputs = head(MAPS)
    hidden = head.class_convs[0](MAPS[0]).relu()
    by_hand = head.logits(hidden)[:, 3:6, 4, 5]
    torch.testing.assert_close(outputs.logits[0][:, 59], by_hand)
    hidden = head.box_convs[0](MAPS[1]).relu()
    torch.testing.assert_close(outputs.deltas[1][:, 1], head.deltas(hidden)[:, 4:8, 0, 0])


@pytest.mark.parametrize(("norm_bias", "names"), [(False, {"0.weight"}), (True, {"0.weight", "0.bias"})])
def test_a_bias_before_the_norm(norm_bias: bool, names: set[str]) -> None:
    head = TowerHead(8, 1, 1, 2, norm="group", norm_bias=norm_bias)
    assert {name for name, _ in head.class_convs[0].named_parameters()} == names | {"1.weight", "1.bias"}


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 32), (32, 16), (8, 4), (12, 4), (2, 1), (5, 1)])
def test_a_map_of_one_pixel_has_something_to_be_normed_by(channels: int, groups: int) -> None:
    head = TowerHead(channels, 1, 1, 2, norm="group").train()
    assert head.class_convs[0][1].num_groups == groups
    assert head([torch.randn(1, channels, 1, 1)]).logits[0].shape == (1, 1, 2)


def test_every_score_is_the_prior_at_first() -> None:
    torch.manual_seed(0)
    head = TowerHead(8, 3, 4, 5, prior=0.02)
    for level in head(MAPS).logits:
        torch.testing.assert_close(level.sigmoid(), torch.full_like(level, 0.02), rtol=0.02, atol=0)
    stds = [module.weight.detach().std() for module in head.modules() if isinstance(module, nn.Conv2d)]
    assert all(0.008 < float(std) < 0.012 for std in stds)
