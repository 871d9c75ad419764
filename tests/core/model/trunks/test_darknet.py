"""Darknet's trunks take Darknet's weights of a classifier, or of its beginning."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.model.trunks.darknet import DARKNET_NAMES, Blur, chain_words, darknet_trunk
from maskrcnn_core.model.trunks.trunk import build_trunk


def written(path: Path, more: int) -> np.ndarray:
    """Random numbers of the tiny trunk and `more` behind them."""
    rng, pieces, below = np.random.default_rng(0), [], 3
    for word in chain_words("darknet_tiny"):
        if word.isdigit():
            width = int(word)
            norm = [rng.uniform(0.5, 1.5, width) for _ in range(4)]
            pieces += [*norm, rng.standard_normal(width * below * 9) * (2 / (9 * below)) ** 0.5]
            below = width
    numbers = np.concatenate([*pieces, np.zeros(more)]).astype("<f4")
    path.write_bytes(np.array([0, 1, 0, 0], "<i4").tobytes() + numbers.tobytes())
    return numbers


@pytest.mark.parametrize("more", [0, 1000])
@torch.no_grad()
def test_the_first_convolution_by_hand(more: int, tmp_path: Path) -> None:
    numbers = written(tmp_path / "tiny.weights", more)
    trunk = build_trunk("darknet_tiny", pretrained=False, frozen_stages=0, weights=str(tmp_path / "tiny.weights"))
    pixels = torch.rand(1, 3, 32, 32)
    bias, scale, mean, variance = (torch.from_numpy(numbers[i * 16 : i * 16 + 16].copy()) for i in range(4))
    kernel = torch.from_numpy(numbers[64 : 64 + 432].copy()).view(16, 3, 3, 3)
    x = functional.conv2d(pixels, kernel, padding=1)
    x = (x - mean.view(-1, 1, 1)) / variance.view(-1, 1, 1).sqrt() * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
    assert isinstance(trunk.features, torch.nn.Sequential)
    assert torch.allclose(trunk.features[0](pixels), functional.leaky_relu(x, 0.1), atol=1e-4)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.weights"
    numbers = written(path, 0)
    path.write_bytes(path.read_bytes()[:-4])
    said = f"has {len(numbers) - 1:,} numbers, where the first 7 .* {len(numbers):,}"
    with pytest.raises(CheckpointError, match=said):
        build_trunk("darknet_tiny", pretrained=False, frozen_stages=0, weights=str(path))
    with pytest.raises(CheckpointError, match="no such file"):
        build_trunk("darknet_tiny", pretrained=False, frozen_stages=0, weights=str(tmp_path / "none.weights"))


def test_convolutions_are_those_of_the_papers() -> None:
    count = {name: sum(word not in ("pool", "blur") for word in chain_words(name)) for name in DARKNET_NAMES}
    assert count == {"darknet19": 18, "darknet_tiny": 7, "yolov1": 24, "yolov1_tiny": 8}
    # Darknet-19's 20.8 million without the last layer, 1,000 classes of 1,024 channels.
    kernels = sum(p.numel() for p in darknet_trunk("darknet19").parameters() if p.ndim == 4)
    assert kernels == 19_802_976


def test_a_blur_sees_right_and_down() -> None:
    x = torch.tensor([[[[1.0, 5.0], [7.0, 2.0]]]])
    assert Blur()(x).tolist() == [[[[7.0, 5.0], [7.0, 2.0]]]]
