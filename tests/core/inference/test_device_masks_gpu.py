"""On a CUDA device: run lengths of many masks are those of the same operations on the CPU."""

import numpy as np
import pytest
import torch

from maskrcnn_core.inference.device_masks import encode_on_device, mask_runs
from maskrcnn_core.masks import PasteRule

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def random_case(count: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """Masks of noise, empty and full ones; boxes within their image, over its borders, around all of it, beside it."""
    dice = np.random.default_rng(count)
    masks = torch.from_numpy(dice.random((count, 28, 28), dtype=np.float32))
    masks[::7], masks[1::7] = 0, 1
    sizes = dice.integers(1, 500, (count, 2))
    corners = dice.uniform(-0.3, 1.1, (count, 2)) * sizes[:, ::-1]
    boxes = np.concatenate((corners, corners + dice.uniform(0, 1, (count, 2)) ** 2 * 500), axis=1).astype(np.float32)
    boxes[1::14] = [-50, -50, 600, 600]
    return masks, dice.permutation(count), boxes, sizes


@pytest.mark.parametrize("rule", ["exact", "bicubic", "torchvision"])
@pytest.mark.parametrize("pixels_at_once", [200_000, 1 << 24])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_the_same_bytes_as_on_the_cpu(rule: PasteRule, pixels_at_once: int, count: int) -> None:
    masks, *others = random_case(count)
    on_cpu, on_gpu = (
        encode_on_device(masks.to(device), *others, rule=rule, pixels_at_once=pixels_at_once)
        for device in ("cpu", "cuda")
    )
    assert on_gpu == on_cpu


def test_the_same_positions_as_on_the_cpu() -> None:
    masks, *others = random_case(40)
    on_cpu, on_gpu = (mask_runs(masks.to(device), *others) for device in ("cpu", "cuda"))
    assert on_gpu.positions.is_cuda
    assert on_gpu.positions.cpu().equal(on_cpu.positions)
    np.testing.assert_array_equal(on_gpu.masks, on_cpu.masks)
    np.testing.assert_array_equal(on_gpu.lengths, on_cpu.lengths)
