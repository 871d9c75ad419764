"""COCO's compressed run lengths, many at once, checked before any decoder sees them.

pycocotools' decoder (`rleFrString` of cocoapi's maskApi.c) reads on until a character ends the number: a string that is
cut within a number makes it read beyond the string's end, and one with runs beyond the image makes it write there. So
the text is checked here first, for a batch of masks in a few passes of numpy over all their characters, and without
drawing a pixel: the runs are counted, not decoded.

Letters: M masks, C characters of all of them, N numbers (runs) of all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_Int64 = npt.NDArray[np.int64]

# Some 80 bytes each while they are checked. So many masks at a time stay in a processor's caches.
_CHARACTERS_AT_ONCE = 1 << 19
_MOST_CHARACTERS = 1 << 22

# Seven characters hold 35 bits; a run of pycocotools, or the difference of two, has at most 33 with its sign.
_LONGEST_NUMBER = 7

FAULTS = (
    "",
    "no runs",
    "a character outside COCO's alphabet",
    "text that ends within a number",
    "a number of more than 35 bits",
    "a run below 0, or longer than the image",
    "runs that don't add up to the image",
    f"more than {_MOST_CHARACTERS} characters",
)
"""What is wrong with a mask, by the numbers of `CheckedRuns.faults`; 0 = nothing."""
_SOUND, _EMPTY, _ALPHABET, _CUT, _LONG, _RUN, _SUM, _HUGE = range(len(FAULTS))


@dataclass(frozen=True)
class CheckedRuns:
    """What the text of many masks says.

    Attributes:
        faults: [M] index into `FAULTS`.
        pixels: [M] sum of all runs; 0 where they couldn't be read.
        areas: [M] sum of the object's runs, pixels; only of meaning where there is no fault.
    """

    faults: npt.NDArray[np.int8]
    pixels: _Int64
    areas: _Int64


def check_runs(counts: pa.Array, pixels: _Int64) -> CheckedRuns:
    """What is wrong with each of many compressed run lengths, and how many pixels they cover.

    Args:
        counts: [M] strings without nulls, as in a record's `segmentation.counts`.
        pixels: [M] height * width of each mask's image.
    """
    text, offsets = _characters(counts)
    faults = np.zeros(len(pixels), np.int8)
    sums, areas = np.zeros((2, len(pixels)), np.int64)
    huge = np.diff(offsets) > _MOST_CHARACTERS
    faults[huge] = _HUGE
    for masks in _groups(offsets, huge):
        part = text[offsets[masks.start] : offsets[masks.stop]]
        found = _check_some(part, offsets[masks.start : masks.stop + 1] - offsets[masks.start], pixels[masks])
        faults[masks], sums[masks], areas[masks] = found.faults, found.pixels, found.areas
    return CheckedRuns(faults, sums, areas)


def _groups(offsets: _Int64, huge: npt.NDArray[np.bool_]) -> Iterator[slice]:
    """Neighbouring masks with some `_CHARACTERS_AT_ONCE` characters together, without those of too many."""
    changes = np.diff(offsets[:-1] // _CHARACTERS_AT_ONCE, prepend=-1) != 0
    changes[1:] |= huge[1:] | huge[:-1]
    starts = np.flatnonzero(changes).tolist()
    yield from (slice(*ends) for ends in pairwise([*starts, len(huge)]) if not huge[ends[0]])


def _check_some(text: npt.NDArray[np.uint8], offsets: _Int64, pixels: _Int64) -> CheckedRuns:
    """`check_runs` of masks whose characters lie one after the other: `offsets` [M + 1] is where each begins."""
    lengths = np.diff(offsets)
    faults = np.zeros(len(lengths), np.int8)
    sums, areas = np.zeros((2, len(lengths)), np.int64)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    codes = text.astype(np.int32) - 48
    filled = lengths > 0
    faults[~filled] = _EMPTY
    is_cut = np.zeros(len(lengths), np.bool_)
    is_cut[filled] = (codes[offsets[1:][filled] - 1] & 0x20) != 0
    faults[is_cut] = _CUT
    faults[owner[(codes < 0) | (codes > 63)]] = _ALPHABET
    readable = faults[owner] == _SOUND
    if not readable.any():
        return CheckedRuns(faults, sums, areas)
    numbers, mask_of, is_long = _numbers(codes[readable], owner[readable])
    starts = _segment_starts(mask_of)
    position = np.arange(len(mask_of)) - np.repeat(starts, np.diff(np.append(starts, len(mask_of))))
    runs = _undo_differences(numbers, mask_of, position)
    sums[mask_of[starts]] = np.add.reduceat(runs, starts)
    areas[mask_of[starts]] = np.add.reduceat(np.where(position % 2 == 1, runs, 0), starts)
    faults[(faults == _SOUND) & (sums != pixels)] = _SUM
    faults[mask_of[(runs < 0) | (runs > pixels[mask_of])]] = _RUN
    faults[mask_of[is_long]] = _LONG
    return CheckedRuns(faults, sums, areas)


def _characters(counts: pa.Array) -> tuple[npt.NDArray[np.uint8], _Int64]:
    """[C] bytes of all strings, and [M + 1] where each begins: Arrow's own memory, without a Python string."""
    array = counts.cast(pa.large_string())
    if len(array) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[array.offset : array.offset + len(array) + 1]
    text = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.zeros(0, np.uint8)
    return text[offsets[0] : offsets[-1]], offsets - offsets[0]


def _numbers(codes: npt.NDArray[np.int32], owner: _Int64) -> tuple[_Int64, _Int64, npt.NDArray[np.bool_]]:
    """[N] numbers as they are written, [N] mask of each, and [N] whether one is too long to be a run.

    A number is 5 bits in a character, low bits first; bit 6 says that it goes on, bit 5 of the last one is the sign.
    """
    ends = np.flatnonzero((codes & 0x20) == 0)
    begins = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - begins + 1
    place = np.minimum(np.arange(len(codes)) - np.repeat(begins, lengths), _LONGEST_NUMBER)
    numbers: _Int64 = np.add.reduceat((codes & 0x1F).astype(np.int64) << (5 * place), begins)
    negative = (codes[ends] & 0x10) != 0
    numbers[negative] -= np.int64(1) << (5 * np.minimum(lengths[negative], _LONGEST_NUMBER))
    return numbers, owner[ends], lengths > _LONGEST_NUMBER


def _undo_differences(numbers: _Int64, mask_of: _Int64, position: _Int64) -> _Int64:
    """[N] runs: from a mask's fourth number on, numbers are differences to the one two before.

    `position` [N] is the place of each within its mask.
    """
    runs = numbers.copy()
    for chain in (position % 2 == 1, (position % 2 == 0) & (position >= 2)):
        runs[chain] = _segment_cumsum(numbers[chain], mask_of[chain])
    return runs


def _segment_cumsum(values: _Int64, segment_of: _Int64) -> _Int64:
    if len(values) == 0:
        return values
    total = np.cumsum(values)
    starts = _segment_starts(segment_of)
    before = total[starts] - values[starts]
    summed: _Int64 = total - np.repeat(before, np.diff(np.append(starts, len(values))))
    return summed


def _segment_starts(segment_of: _Int64) -> _Int64:
    """Where each run of equal numbers begins."""
    return np.concatenate(([0], np.flatnonzero(segment_of[1:] != segment_of[:-1]) + 1)).astype(np.int64)
