"""The hue turned by a loop, against torchvision's operator, bit by bit."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from maskrcnn_core.data.augment import turned_hue
from maskrcnn_core.kernels.cpu.hue import turn_hue
from maskrcnn_core.kernels.gpu.availability import without_kernels


def test_by_eye() -> None:
    # A third of the circle further red is green, and green is blue; grey stays as it is.
    pixels = torch.tensor([[255, 0, 0, 77], [0, 255, 0, 77], [0, 0, 255, 77]], dtype=torch.uint8)[:, None]
    assert turn_hue(pixels, 1 / 3)[:, 0].T.tolist() == [[0, 255, 0], [0, 0, 255], [255, 0, 0], [77, 77, 77]]


@pytest.mark.parametrize("share", [0.0, 0.05, -0.05, 0.31, 0.5, -0.5])
def test_torchvisions_bits(share: float) -> None:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 4, (3, 64, 65), dtype=np.uint8) * 85)  # channels that are equal
    fine = torch.from_numpy(rng.integers(0, 256, (3, 200, 301), dtype=np.uint8))
    for pixels in (coarse, fine, fine[:, ::2].flip(-1), fine[:, :1, :1], fine[:, :0]):
        assert torch.equal(turn_hue(pixels, share), functional.adjust_hue(pixels, share))


def test_the_operator_stands_in() -> None:
    pixels = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    with without_kernels("hue"):
        expected = turned_hue(pixels, 0.2)
    assert torch.equal(turned_hue(pixels, 0.2), expected)
