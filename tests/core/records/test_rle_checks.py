"""Run lengths are judged as pycocotools would decode them, and bad ones never reach it."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn_core import compressed_runs
from maskrcnn_core.compressed_runs import check_texts
from maskrcnn_core.data.segmentation import run_lengths
from maskrcnn_core.records.rle_checks import FAULTS, check_runs


def fault_of(counts: str, height: int, width: int) -> str:
    return FAULTS[check_runs(pa.array([counts]), np.array([height * width])).faults[0]]


def encode(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def test_many_masks_at_once_have_their_pixels_and_areas() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random(rng.integers(1, 40, 2)) < rng.random() for _ in range(200)]
    masks += [np.zeros((3, 5), bool), np.ones((3, 5), bool), np.ones((1, 1), bool)]
    pixels = np.array([mask.size for mask in masks])
    checked = check_runs(pa.array([encode(mask) for mask in masks]), pixels)
    assert not checked.faults.any()
    assert checked.pixels.tolist() == pixels.tolist()
    assert checked.areas.tolist() == [int(mask.sum()) for mask in masks]


def test_no_masks_and_parts_of_an_array() -> None:
    assert len(check_runs(pa.array([], pa.string()), np.zeros(0, np.int64)).faults) == 0
    whole = pa.array(["x", encode(np.eye(4)), encode(np.ones((2, 2)))])
    assert check_runs(whole.slice(1), np.array([16, 4])).areas.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ("4", ""),  # one run of 4: no object in 2 x 2 pixels
        ("", "no runs"),
        ("0\x7f4", "a character outside COCO's alphabet"),
        ("04 ", "a character outside COCO's alphabet"),
        ("0ä", "a character outside COCO's alphabet"),
        ("0T", "text that ends within a number"),  # T = 36 has the bit that says: goes on
        ("0" + "T" * 40 + "0", "a number of more than 35 bits"),
        ("0N", "a run below 0, or longer than the image"),  # N = 30: bit 5 of the last character is the sign
        ("05", "a run below 0, or longer than the image"),
        ("03", "runs that don't add up to the image"),
        ("0112", "runs that don't add up to the image"),  # 0, 1, 1, then 1 + 2
    ],
)
def test_a_fault_is_named(counts: str, expected: str) -> None:
    assert fault_of(counts, 2, 2) == expected


def test_a_bad_mask_does_not_touch_its_neighbours() -> None:
    good = encode(np.eye(5))
    counts = [good, "0" + "T" * 30, good, "", good, "ooooooo~", good]
    checked = check_runs(pa.array(counts), np.full(7, 25))
    assert (checked.faults[::2] == 0).all()
    assert (checked.faults[1::2] != 0).all()
    assert checked.areas[::2].tolist() == [5] * 4


@given(st.text(st.characters(min_codepoint=48, max_codepoint=113), max_size=12), st.integers(1, 6), st.integers(1, 6))
def test_what_is_sound_is_sound_by_the_slow_reader_too(text: str, height: int, width: int) -> None:
    """One mask by `data.segmentation`, which the labelled images of training go through."""
    try:
        runs = run_lengths({"size": [height, width], "counts": text}, height, width)
    except ValueError:
        assert fault_of(text, height, width)
    else:
        assert not fault_of(text, height, width)
        mask = coco_mask.decode({"size": [height, width], "counts": text.encode()})
        assert mask.sum() == runs[1::2].sum()


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_the_number_of_masks_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(compressed_runs, "_CHARACTERS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    counts = [encode(rng.random((4, side)) < 0.5) for side in range(1, 20)]
    counts[3:15:3] = ["", "0T", "0N", "ä"]
    pixels = 4 * np.arange(1, 20)
    checked = check_texts(counts, pixels)
    assert [FAULTS[fault] for fault in checked.faults] == [
        fault_of(text, 4, side) for side, text in enumerate(counts, 1)
    ]
    assert checked.faults.tolist() == check_runs(pa.array(counts), pixels).faults.tolist()
    assert (checked.faults > 0).sum() == 4


def test_sums_beyond_64_bits_are_not_taken_for_the_image() -> None:
    """Differences that grow: 2^34 more in each run, so that all of them together wrap around."""
    growing = "oooooo?"  # 2^34 - 1
    runs = np.zeros(120_000, object)
    for place in range(len(runs)):
        runs[place] = (2**34 - 1) + (runs[place - 2] if place > 2 else 0)
    pixels = int(runs.sum()) % 2**64
    assert pixels < 2**63 < runs.sum()
    assert check_texts([growing * len(runs)], np.array([pixels])).faults.tolist() == [
        FAULTS.index("a run below 0, or longer than the image")
    ]
