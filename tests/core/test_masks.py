"""Pasting and run-length encoding against pycocotools, torch's grid_sample and torchvision's paste."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_core import masks
from maskrcnn_core.masks import (
    PastedMask,
    PasteRule,
    decode_mask,
    encode_counts,
    encode_mask,
    encode_masks,
    paste_mask,
    run_lengths,
)


def full_image(mask: PastedMask, height: int, width: int) -> np.ndarray:
    image = np.zeros((height, width), dtype=bool)
    window_width, window_height = mask.columns.shape
    image[mask.top : mask.top + window_height, mask.left : mask.left + window_width] = mask.columns.T
    return image


def pycocotools_counts(image: np.ndarray) -> str:
    return pycocotools.mask.encode(np.asfortranarray(image.astype(np.uint8)))["counts"].decode("ascii")


def soft_blob(seed: int, side: int = 28) -> np.ndarray:
    coarse = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)[0, 0].numpy()


def test_counts_by_eye() -> None:
    # 3 x 4 image, the window is its middle 2 columns, top 2 rows:   . # . .
    #                                                                . # # .
    #                                                                . . . .
    mask = PastedMask(np.array([[True, True], [False, True]]), top=0, left=1)
    # column-major: 3 empty, 2 set, 1 empty (row 2) + 1 empty (row 0), 1 set, the rest 4 empty
    assert run_lengths(mask, 3, 4).tolist() == [3, 2, 2, 1, 4]


def test_full_columns_are_one_run() -> None:
    mask = PastedMask(np.ones((2, 3), dtype=bool), top=0, left=1)
    assert run_lengths(mask, 3, 4).tolist() == [3, 6, 3]


def test_whole_image_and_empty_window() -> None:
    assert run_lengths(PastedMask(np.ones((4, 3), dtype=bool), 0, 0), 3, 4).tolist() == [0, 12]
    assert run_lengths(PastedMask(np.zeros((0, 0), dtype=bool), 0, 0), 3, 4).tolist() == [12]
    assert run_lengths(PastedMask(np.zeros((2, 2), dtype=bool), 0, 0), 3, 4).tolist() == [12]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_bytes_equal_pycocotools(data: st.DataObject) -> None:
    height = data.draw(st.integers(1, 12))
    width = data.draw(st.integers(1, 12))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    bits = data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    mask = PastedMask(np.array(bits).reshape(columns, rows), top, left)
    image = full_image(mask, height, width)
    counts = run_lengths(mask, height, width)
    assert counts.sum() == height * width
    encoded = encode_counts(counts, height, width)
    assert encoded == pycocotools_counts(image)
    np.testing.assert_array_equal(decode_mask(encoded, height, width), image)


@pytest.mark.parametrize("rule", ["exact", "bicubic"])
@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.5, 0.7])
@pytest.mark.parametrize(
    "box",
    [
        (10.3, 20.7, 90.2, 61.9),
        (0.0, 0.0, 120.0, 100.0),
        (-15.5, -8.0, 40.0, 30.0),
        (100.2, 80.1, 150.0, 130.0),
        (50.0, 50.0, 51.2, 50.9),
        (30.4, 30.4, 30.6, 30.6),
    ],
)
def test_paste_interpolates_at_pixel_centres(box: tuple[float, ...], threshold: float, rule: PasteRule) -> None:
    height, width = 100, 120
    mask = soft_blob(int(box[0] * 10) % 97)
    x = (torch.arange(width) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (torch.arange(height) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None].double()
    reference = functional.grid_sample(
        torch.from_numpy(mask)[None, None].double(),
        grid,
        mode="bilinear" if rule == "exact" else "bicubic",
        align_corners=False,
    )[0, 0]
    pasted = full_image(
        paste_mask(mask, np.array(box, dtype=np.float32), height, width, rule=rule, threshold=threshold), height, width
    )
    undecided = (reference - threshold).abs().numpy() < 1e-5
    np.testing.assert_array_equal(pasted | undecided, (reference.numpy() >= threshold) | undecided)


def keys_kernel(x: float) -> float:
    """Cubic convolution with -0.75, as written in the literature."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize("box", [(3.2, 4.9, 21.7, 17.3), (-4.0, 2.0, 9.0, 40.0)])
def test_bicubic_paste_as_the_slow_reference_to_the_byte(box: tuple[float, ...]) -> None:
    height, width, side = 24, 30, 7
    mask = soft_blob(5, side)
    image = np.zeros((height, width), dtype=bool)
    for i in range(height):
        for j in range(width):
            y = (i + 0.5 - box[1]) / (box[3] - box[1]) * side - 0.5
            x = (j + 0.5 - box[0]) / (box[2] - box[0]) * side - 0.5
            value = sum(mask[p, q] * keys_kernel(y - p) * keys_kernel(x - q) for p in range(side) for q in range(side))
            image[i, j] = value >= 0.5
    assert 20 < image.sum() < 600
    assert encode_mask(mask, np.array(box), height, width, rule="bicubic") == pycocotools_counts(image)


@pytest.mark.parametrize(
    "box", [(10.3, 20.7, 90.2, 61.9), (-15.5, -8.0, 40.0, 30.0), (100.2, 80.1, 119.0, 99.0), (50.0, 50.0, 51.2, 50.9)]
)
def test_torchvision_rule_is_torchvisions(box: tuple[float, ...]) -> None:
    height, width = 100, 120
    mask = soft_blob(3)
    boxes = torch.tensor([box])
    reference = paste_masks_in_image(torch.from_numpy(mask)[None, None], boxes, (height, width))[0, 0]
    pasted = full_image(
        paste_mask(mask, np.array(box, dtype=np.float32), height, width, rule="torchvision"), height, width
    )
    undecided = (reference - 0.5).abs().numpy() < 1e-5
    np.testing.assert_array_equal(pasted | undecided, (reference.numpy() >= 0.5) | undecided)


def test_box_outside_the_image_gives_an_empty_mask() -> None:
    box = np.array([200.0, 200.0, 240.0, 260.0], dtype=np.float32)
    for rule in ("exact", "bicubic", "torchvision"):
        counts = encode_mask(np.ones((28, 28), dtype=np.float32), box, 100, 120, rule=rule)
        assert not decode_mask(counts, 100, 120).any()


def test_masks_of_an_image_together_as_one_by_one() -> None:
    soft = np.stack([soft_blob(seed) for seed in range(3)])
    boxes = np.array([[3, 4, 40, 50], [-9, 20.5, 130, 30], [200, 0, 210, 9]], dtype=np.float32)
    for rule in ("exact", "bicubic", "torchvision"):
        together = encode_masks(soft, boxes, 60, 120, rule=rule)
        assert together == [encode_mask(mask, box, 60, 120, rule=rule) for mask, box in zip(soft, boxes, strict=True)]
    assert encode_masks(soft[:0], boxes[:0], 60, 120) == []


@pytest.mark.parametrize("rule", ["exact", "bicubic", "torchvision"])
@pytest.mark.parametrize("at_once", [1, 700])  # a column at a time; a few, the last block smaller
def test_blocks_of_columns_make_the_same_mask(monkeypatch: pytest.MonkeyPatch, rule: PasteRule, at_once: int) -> None:
    soft = soft_blob(2)
    for box in ((-5.0, 3.0, 80.0, 61.0), (0.0, 0.0, 90.0, 64.0), (-40.0, -40.0, 200.0, 200.0), (95.0, 0.0, 99.0, 9.0)):
        corners = np.array(box, dtype=np.float32)
        whole, counts = paste_mask(soft, corners, 64, 90, rule=rule), encode_mask(soft, corners, 64, 90, rule=rule)
        with monkeypatch.context() as patched:
            patched.setattr(masks, "_PIXELS_AT_ONCE", at_once)
            blocks = paste_mask(soft, corners, 64, 90, rule=rule)
            assert (blocks.top, blocks.left) == (whole.top, whole.left)
            np.testing.assert_array_equal(blocks.columns, whole.columns)
            assert encode_mask(soft, corners, 64, 90, rule=rule) == counts


def test_a_box_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="expected finite"):
        encode_mask(soft_blob(0), np.array([0, 0, np.inf, 3], dtype=np.float32), 10, 10)


@pytest.mark.alone
def test_a_large_window_needs_little_memory() -> None:
    # 12 million pixels: 48 MB as float32.
    box = np.array([0, 0, 4000, 3000], dtype=np.float32)
    tracemalloc.start()
    encode_mask(soft_blob(1), box, 3000, 4000)
    assert tracemalloc.get_traced_memory()[1] < 24e6


_HUGE = """
import resource
import numpy as np
from maskrcnn_core.masks import encode_masks
soft = np.random.default_rng(0).random((4, 28, 28), dtype=np.float32)
boxes = np.array([[0, 0, 10000, 10000], [-500, -500, 12000, 9000], [0, 0, 10000, 20], [5, 5, 9, 9]], dtype=np.float32)
encode_masks(soft[:, :, :], boxes / 100, 100, 100)  # what libraries allocate once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
encode_masks(soft, boxes, 10000, 10000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_masks_on_a_hundred_megapixels_stay_within_64_megabytes() -> None:
    done = subprocess.run([sys.executable, "-c", _HUGE], capture_output=True, text=True, check=True, timeout=300)
    assert float(done.stdout) < 64


def test_a_pixel_at_the_threshold_belongs_to_the_object() -> None:
    # One cell on a box from the middle of pixel 0 to the middle of pixel 1: both have exactly one half.
    one = np.ones((1, 1), dtype=np.float32)
    found = paste_mask(one, np.array([0.5, 0.0, 1.5, 1.0], dtype=np.float32), 1, 4, rule="exact", threshold=0.5)
    assert run_lengths(found, 1, 4).tolist() == [0, 2, 2]
    above = paste_mask(one, np.array([0.5, 0.0, 1.5, 1.0], dtype=np.float32), 1, 4, rule="exact", threshold=0.51)
    assert run_lengths(above, 1, 4).tolist() == [4]
