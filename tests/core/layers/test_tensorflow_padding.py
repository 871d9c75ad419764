"""TensorFlow's padding, by eye, and in a network."""

import pytest
import torch
from torch import nn

from maskrcnn_core.layers.tensorflow_padding import TensorFlowPad, pad_as_tensorflow


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after"),
    [
        (300, 3, 2, 0, 1),
        (75, 3, 2, 1, 1),
        (38, 3, 2, 0, 1),
        (5, 5, 2, 2, 2),
        (6, 5, 2, 1, 2),
        (2, 3, 2, 0, 1),
        (1, 3, 2, 1, 1),
    ],
)
def test_by_eye(size: int, kernel: int, stride: int, before: int, after: int) -> None:
    padded = TensorFlowPad(kernel, stride)(torch.ones(1, 1, size, size + 2 * stride))[0, 0]
    assert padded.shape[0] == size + before + after
    assert (padded[:, padded.shape[1] // 2] == 0).nonzero()[:, 0].tolist() == [
        *range(before),
        *range(size + before, size + before + after),
    ]


def test_a_network_is_padded_in_place() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1, stride=2)
    )
    symmetric = network(torch.ones(1, 3, 8, 8)).shape
    pad_as_tensorflow(network)
    assert next(iter(dict(network.named_parameters()))) == "0.1.weight"
    assert network(torch.ones(1, 3, 8, 8)).shape == symmetric
    # The first cell of an even side sees pixels 0 to 2, and not -1 to 1.
    seen = torch.zeros(1, 3, 8, 8)
    seen[..., 2, 2] = 1
    assert bool((network[0](seen) != network[0](torch.zeros(1, 3, 8, 8)))[0, :, 0, 0].any())
