"""Which layers make which map, found by running them; and freezing and dilating by that."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from maskrcnn_core.model.trunks.stages import dilate_stage, stages_by_prefix, traced_stages


class Block(nn.Module):
    """Its last module runs before the shortcut's, and the sum is taken in place: only the block's end ends the map."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, 1)
        self.shortcut = nn.Conv2d(width, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += self.shortcut(x)
        return y


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1))
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.body = nn.ModuleList([Block(4, 2), nn.Sequential(nn.Identity(), Block(4, 2)), Block(4, 2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.first(x) + self.position
        maps = []
        for block in self.body:
            x = block(x)
            maps.append(x)
        return maps


def test_stages_of_a_chain() -> None:
    assert traced_stages(Chain()) == [
        ["", "first"],  # parameters of the whole belong to the stem
        ["body.0.conv", "body.0.shortcut"],
        ["body.1.0", "body.1.1.conv", "body.1.1.shortcut"],
        ["body.2.conv", "body.2.shortcut"],
    ]


def test_a_network_that_starts_at_stride_4_has_its_first_layer_as_stem() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.GroupNorm(1, 4))
            self.block = Block(4, 2)

        def forward(self, x: Tensor) -> list[Tensor]:
            fine = self.stem(x)
            return [fine, self.block(fine).permute(0, 1, 2, 3)]  # a view: found by its memory

    assert traced_stages(Patches()) == [["stem.0"], ["stem.1"], ["block.conv", "block.shortcut"]]


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "regnetx_002", "hrnet_w18_small"])
def test_every_parameter_has_one_stage(name: str) -> None:
    network = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
    stages = traced_stages(network)
    owners = [path for stage in stages for path in stage]
    assert len(owners) == len(set(owners))
    assert {key.rpartition(".")[0] for key, _ in network.named_parameters()} <= set(owners)
    assert len(stages) == 5


def test_prefixes_are_whole_names() -> None:
    network = nn.ModuleDict({"a": nn.Linear(1, 1), "ab": nn.Linear(1, 1), "c": nn.Sequential(nn.Linear(1, 1))})
    assert stages_by_prefix(network, [["a", "c"], ["ab"]]) == [["a", "c.0"], ["ab"]]


@torch.no_grad()
def test_dilated_stage_computes_the_same_at_every_second_cell() -> None:
    """Without its stride a stage samples twice as densely; every second cell is what it was."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 2, 1))
    x = torch.randn(1, 2, 15, 18)
    expected = network(x)
    assert dilate_stage(network, ["1", "2", "3"]) == 1
    dense = nn.Sequential(*network)
    strided: Any = dense[0]
    strided.stride = (1, 1)  # the strided layer itself sees the neighbours that it saw; the next ones dilate
    got = dense(x)
    assert got.shape[-2:] == (15, 18)
    torch.testing.assert_close(got[..., ::2, ::2], expected)


def test_dilating_strides_and_pools() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 2), nn.AvgPool2d(3, 1, 1))
    assert dilate_stage(network, ["0", "1", "2", "3"]) == 1
    conv: Any = network[0]
    assert (conv.stride, conv.dilation, conv.padding) == ((1, 1), (2, 2), (2, 2))
    assert isinstance(network[2], nn.Identity)
    assert network(torch.zeros(1, 2, 9, 12)).shape == (1, 3, 9, 12)
