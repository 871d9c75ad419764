"""On a CUDA device: what is copied has arrived, and the device's masks are those of the same operations on the CPU."""

import numpy as np
import pytest
import torch

from maskrcnn_core.inference.device_masks import mask_runs
from maskrcnn_core.masks import PasteRule
from maskrcnn_core.structures import Proposals

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def test_what_is_copied_to_the_host_has_arrived() -> None:
    boxes = torch.zeros(1, 1_000_000, 4, device="cuda")
    for step in range(5):
        torch.cuda._sleep(50_000_000)
        boxes = boxes + 1
        found = Proposals(boxes, boxes[..., 0], torch.tensor([7], device="cuda")).to("cpu")
        assert (found.boxes == step + 1).all()
        assert int(found.count[0]) == 7


@pytest.mark.parametrize("rule", ["exact", "bicubic", "torchvision"])
def test_runs_are_the_same_to_the_bit(rule: PasteRule) -> None:
    generator = np.random.default_rng(0)
    masks = torch.from_numpy(generator.random((40, 28, 28), dtype=np.float32))
    corners = generator.uniform(-50, 500, (40, 2))
    boxes = np.concatenate((corners, corners + generator.uniform(0, 300, (40, 2))), axis=1).astype(np.float32)
    sizes = np.array([[480, 640]] * 40)
    on_cpu, on_gpu = (
        mask_runs(masks.to(device), np.arange(40), boxes, sizes, rule=rule, pixels_at_once=200_000)
        for device in ("cpu", "cuda")
    )
    np.testing.assert_array_equal(on_gpu.positions, on_cpu.positions)
    np.testing.assert_array_equal(on_gpu.starts, on_cpu.starts)
    np.testing.assert_array_equal(on_gpu.stops, on_cpu.stops)
