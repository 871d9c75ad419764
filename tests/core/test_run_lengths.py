"""Compressed run lengths of many masks at once against pycocotools, mask by mask."""

from collections.abc import Sequence

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn_core import run_lengths
from maskrcnn_core.run_lengths import encode_runs

Runs = Sequence[tuple[int, int]]  # first pixel, first pixel after it


def encoded(masks: Sequence[Runs], areas: Sequence[int]) -> list[str]:
    positions = [position for runs in masks for run in runs for position in run]
    lengths = np.array([2 * len(runs) for runs in masks], dtype=np.int64)
    return encode_runs(torch.tensor(positions, dtype=torch.int64), lengths, np.array(areas, dtype=np.int64))


def expected(runs: Runs, area: int) -> str:
    """By pycocotools, from counts that are collected run by run."""
    counts, background = [0], True
    for start, stop in runs:
        if start > sum(counts):
            counts = [*counts, 0] if not background else counts
            counts[-1] += start - sum(counts)
            background = True
        counts = [*counts, 0] if background else counts
        counts[-1] += stop - start
        background = False
    if sum(counts) < area:
        counts = [*counts, 0] if not background else counts
        counts[-1] += area - sum(counts)
    rle = pycocotools.mask.frPyObjects({"size": [area, 1], "counts": counts}, area, 1)
    return rle["counts"].decode("ascii")


def column_runs(image: np.ndarray) -> list[tuple[int, int]]:
    """Runs of an image [H, W] bool, none going on over the end of its column."""
    height, width = image.shape
    runs = []
    for column in range(width):
        edged = np.concatenate(([0], image[:, column].astype(np.int8), [0]))
        starts, stops = np.flatnonzero(np.diff(edged) > 0), np.flatnonzero(np.diff(edged) < 0)
        runs += [(column * height + start, column * height + stop) for start, stop in zip(starts, stops, strict=True)]
    return runs


def test_by_eye() -> None:
    # 3 x 4 image:   . # . .     down the columns: 3 empty, 2 set, 2 empty, 1 set, the rest 4 empty.
    #                . # # .     Written from the fourth on is the difference with the second, -1 and 2:
    #                . . . .     characters 48 + 3, + 2, + 2, + 31 (-1 in 5 bits), + 2.
    assert encoded([[(3, 5), (7, 8)]], [12]) == ["322O2"]
    # 40 = 8 + 1 * 32: 8 with "another follows" is 48 + 8 + 32, "X", and then "1".
    assert encoded([[(40, 42)]], [47]) == ["X125"]


def test_full_columns_are_one_run() -> None:
    assert encoded([[(3, 6), (6, 9)], [(0, 3), (3, 6), (6, 9), (9, 12)], [(3, 6), (9, 12)]], [12] * 3) == [
        "363",
        "0<",
        "3330",
    ]


def test_neighbours_are_not_joined() -> None:
    # Where one mask ends at the position at which the next begins; masks without pixels between.
    masks = [[(2, 12)], [(0, 5)], [], [], [(5, 7)], [(7, 9)], []]
    assert encoded(masks, [12] * 7) == [expected(runs, 12) for runs in masks]


def test_no_masks_and_no_pixels() -> None:
    assert encoded([], []) == []
    assert encoded([[]], [12]) == ["<"]
    assert encoded([[], []], [0, 100_000_000]) == [expected([], 0), expected([], 100_000_000)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_bytes_of_pictures_equal_pycocotools(data: st.DataObject) -> None:
    images = []
    for _ in range(data.draw(st.integers(0, 6))):
        height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
        bits = data.draw(
            st.one_of(
                st.lists(st.booleans(), min_size=height * width, max_size=height * width),
                st.sampled_from([[False] * height * width, [True] * height * width]),
            )
        )
        images.append(np.array(bits).reshape(height, width))
    assert encoded([column_runs(image) for image in images], [image.size for image in images]) == [
        pycocotools.mask.encode(np.asfortranarray(image.astype(np.uint8)))["counts"].decode("ascii") for image in images
    ]


# Lengths around those at which a count or a difference needs another character, and 0, where runs touch.
LENGTHS = st.one_of(
    st.integers(0, 40),
    st.sampled_from([16 << 5 * more for more in range(5)]).flatmap(lambda least: st.integers(least - 2, least + 2)),
    st.integers(0, 4_000_000),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.tuples(LENGTHS, LENGTHS.map(lambda length: max(length, 1))), max_size=12), max_size=6))
def test_bytes_of_runs_in_large_images_equal_pycocotools(drawn: list[list[tuple[int, int]]]) -> None:
    masks, areas = [], []
    for gaps_and_lengths in drawn:
        ends = np.cumsum(np.array(gaps_and_lengths, dtype=np.int64).reshape(-1)).tolist()
        masks.append(list(zip(ends[::2], ends[1::2], strict=True)))
        areas.append(max([100_000_000, *ends]))  # a mask of more than 100 megapixels reaches the last pixel
    assert encoded(masks, areas) == [expected(runs, area) for runs, area in zip(masks, areas, strict=True)]


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_groups_of_masks_make_the_same_bytes(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    dice = np.random.default_rng(0)
    images = [dice.random((9, 11)) < dice.choice([0, 0.3, 0.9, 1]) for _ in range(40)]
    masks, areas = [column_runs(image) for image in images], [99] * 40
    whole = encoded(masks, areas)
    monkeypatch.setattr(run_lengths, "_POSITIONS_AT_ONCE", {"cpu": at_once})
    assert encoded(masks, areas) == whole


class Calls(TorchDispatchMode):
    """Names of the operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_the_device_is_asked_as_often_whatever_the_masks() -> None:
    asked = []
    for count in (1, 300):
        with Calls() as calls:
            encoded([[(3, 5), (5, 6)]] * count, [12] * count)
        assert not {"_local_scalar_dense", "item"} & set(calls.names)
        assert [calls.names.count(name) for name in ("nonzero", "masked_select")] == [1, 1]
        asked.append(calls.names)
    assert asked[0] == asked[1]
