"""The Triton kernels against torchvision's operators: interpreted on the CPU, and on a GPU where there is one."""

import importlib
import os
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn_core.boxes import suppress
from maskrcnn_core.inference import device_masks
from maskrcnn_core.masks import PasteRule, pixel_spans
from maskrcnn_core.model.regions import align
from maskrcnn_core.model.regions.align import SamplingGrid, align_by_operator

pytest.importorskip("triton", reason="Triton is not installed: torch's operators do the work")

# The interpreter divides as numpy does: an empty box by an empty one.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "cpu" and not INTERPRETED:
        pytest.skip("interpreted in a process of its own, by test_interpreted_on_the_cpu")
    return str(request.param)


def load(name: str) -> ModuleType:
    """A module of kernels; not imported with this file, since Triton decides then whether it interprets."""
    return importlib.import_module(f"maskrcnn_core.kernels.gpu.{name}")


@pytest.mark.skipif(INTERPRETED, reason="is that process")
def test_interpreted_on_the_cpu() -> None:
    # Triton has to know before it is imported, and other tests may have imported it.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "cpu"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def ranked_boxes(groups: int, slots: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(groups, slots, 2, generator=generator) * 60
    boxes = torch.cat((corners, corners + torch.rand(groups, slots, 2, generator=generator) * 30), dim=-1)
    return boxes, torch.rand(groups, slots, generator=generator) > 0.1


@pytest.mark.parametrize(("groups", "slots", "labels"), [(3, 200, 0), (2, 150, 3), (1, 1, 0), (2, 64, 2), (4, 65, 0)])
def test_suppression(groups: int, slots: int, labels: int, device: str) -> None:
    boxes, valid = ranked_boxes(groups, slots, groups * slots)
    boxes[:, slots // 2] = boxes[:, 0]  # the same box again
    boxes[:, -1] = 0.0  # an empty one
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, max(labels, 1), (groups, slots), generator=generator)
    scores = torch.linspace(1, 0.1, slots).expand(groups, slots)
    expected = suppress(boxes, scores, label, valid, 0.4, fixed_size=False)
    arguments = [None if x is None else x.to(device) for x in (boxes, label if labels else None, valid)]
    suppress_ranked = load("suppression").suppress_ranked
    assert suppress_ranked(*arguments, 0.4).cpu().equal(expected)
    # The best few are found without looking at the rest.
    few = suppress_ranked(*arguments, 0.4, 5).cpu()
    for found, wanted in zip(few, expected, strict=True):
        assert found.nonzero()[:5, 0].equal(wanted.nonzero()[:5, 0])
        assert not (found & ~wanted).any()


@pytest.mark.parametrize("most_in_words", [0, 8192])
def test_a_long_chain_of_overlaps(most_in_words: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load("suppression"), "_MOST_IN_WORDS", most_in_words)
    # Each box strikes out only the next: every second one stays, which takes many repetitions.
    left = torch.arange(100.0)[None, :, None] * 4
    boxes = torch.cat((left, left * 0, left + 10, left * 0 + 10), dim=-1).to(device)
    kept = load("suppression").suppress_ranked(boxes, None, torch.ones(1, 100, dtype=torch.bool, device=device), 0.3)
    assert kept[0].nonzero()[:, 0].tolist() == list(range(0, 100, 2))


@pytest.mark.parametrize("slots", [0, 70])
def test_nothing_valid(slots: int, device: str) -> None:
    nothing = torch.zeros(2, slots, dtype=torch.bool, device=device)
    assert not load("suppression").suppress_ranked(torch.rand(2, slots, 4, device=device), None, nothing, 0.5).any()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("channels", "num_levels"), [(6, 4), (16, 3), (5, 1)])
def test_roi_align(channels: int, num_levels: int, aligned: bool, device: str) -> None:
    generator = torch.Generator().manual_seed(channels)
    strides = (4, 8, 16, 32)[:num_levels]
    maps = [
        torch.randn(2, channels, 64 // stride, 64 // stride + 3, generator=generator).to(device).requires_grad_()
        for stride in strides
    ]
    corners = torch.rand(9, 2, generator=generator) * 70 - 5  # some reach over the border, some lie beyond it
    boxes = torch.cat((corners, corners + torch.rand(9, 2, generator=generator) * 60), dim=-1).to(device)
    images = torch.randint(0, 2, (9,), generator=generator).to(device)
    levels = (torch.arange(9) % num_levels).to(device)
    found = load("region_features").align_regions(
        maps, boxes, images, levels, strides, resolution=3, samples=2, aligned=aligned
    )
    expected = align_by_operator(maps, boxes, images, levels, strides, SamplingGrid(3, 2, aligned))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    given = torch.randn(found.shape, generator=generator).to(device)
    for one, other in zip(
        torch.autograd.grad(found, maps, given), torch.autograd.grad(expected, maps, given), strict=True
    ):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_roi_align_of_half_precision_sums_in_full(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    level = torch.randn(1, 8, 16, 16, generator=generator).bfloat16().to(device)
    level = level.contiguous(memory_format=torch.channels_last)
    boxes = torch.tensor([[3.0, 5, 50, 44], [0, 0, 64, 64]], device=device)
    where = torch.zeros(2, dtype=torch.int64, device=device)
    found = load("region_features").align_regions(
        [level], boxes, where, where, (4,), resolution=7, samples=2, aligned=True
    )
    expected = align_by_operator([level.float()], boxes, where, where, (4,), SamplingGrid(7, 2, True))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=1e-6, rtol=2**-7)  # interpreted, the cast cuts off


def test_both_know_how_many_levels_there_may_be(device: str) -> None:
    assert load("region_features").LEVELS == align._KERNEL_LEVELS


def test_no_regions(device: str) -> None:
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    level = torch.ones(1, 4, 5, 5, device=device, requires_grad=True)
    found = load("region_features").align_regions(
        [level], torch.zeros(0, 4, device=device), nothing, nothing, (4,), resolution=2, samples=2, aligned=True
    )
    assert found.shape == (0, 4, 2, 2)
    assert not torch.autograd.grad(found.sum(), level)[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias(dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = (
        torch.randn(2, 6, 30, 31, generator=generator).to(device, dtype).contiguous(memory_format=torch.channels_last)
    )
    bias = torch.randn(6, generator=generator).to(device, dtype)
    expected = (maps.float() + bias.float()[:, None, None]).to(dtype)
    assert load("bias").add_bias_(maps, bias) is maps
    torch.testing.assert_close(maps, expected, rtol=2**-7, atol=0)  # interpreted, the cast cuts off
    assert load("bias").add_bias_(maps[:0], bias).shape == (0, 6, 30, 31)


@pytest.mark.parametrize("rule", ["exact", "bicubic", "torchvision"])
def test_runs_of_masks(rule: PasteRule, device: str) -> None:
    dice = np.random.default_rng(0)
    masks = torch.from_numpy(dice.random((9, 7, 7), dtype=np.float32))
    masks[0], masks[1] = 0, 1
    corners = dice.uniform(-10, 60, (9, 2))
    boxes = np.concatenate((corners, corners + dice.uniform(0, 40, (9, 2))), axis=1).astype(np.float32)
    boxes[1], boxes[2], boxes[3] = [-20, -20, 100, 100], [200, 5, 220, 9], [5, 5, 5, 5]  # all around, beside, empty
    sizes = np.array([[50, 70], [80, 40], [30, 30]] * 3)
    places = dice.permutation(9)
    expected = device_masks.mask_runs(masks, places, boxes, sizes, rule=rule)
    load("mask_runs")
    found = device_masks._runs_by_kernel(
        masks.to(device), places, pixel_spans(boxes, sizes, 7, rule), sizes, rule=rule, threshold=0.5
    )
    assert found.lengths.sum() == expected.lengths.sum() > 100
    for mask in range(9):
        assert found.of(mask).tolist() == expected.of(mask).tolist()


def test_top_down(device: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def map_of(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=generator).to(device).contiguous(memory_format=torch.channels_last)
        return x.requires_grad_()

    fine, coarse = map_of(2, 16, 6, 10), map_of(2, 16, 3, 5)
    expected = fine + torch.nn.functional.interpolate(coarse, scale_factor=2, mode="nearest")
    found = load("top_down").add_enlarged_(fine * 1.0, coarse)
    torch.testing.assert_close(found, expected)
    given = torch.randn(expected.shape, generator=generator).to(device)
    gradients = (torch.autograd.grad(y, (fine, coarse), given) for y in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
