"""COCO's compressed run lengths, many at once, checked before any decoder sees them.

pycocotools' decoder (`rleFrString` of cocoapi's maskApi.c) reads on until a character ends the number: a string that is
cut within a number makes it read beyond the string's end, and one with runs beyond the image makes it write there. So
the text is checked here first, for a batch of masks in a few passes of numpy over all their characters, and without
drawing a pixel: the runs are counted, not decoded.

Letters: M masks, C characters of all of them, N numbers (runs) of all of them, P pairs of runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

_Int64 = npt.NDArray[np.int64]
_Codes = npt.NDArray[np.uint8]

# Some 20 bytes each while they are checked. So many masks at a time stay in a processor's caches.
_CHARACTERS_AT_ONCE = 1 << 16
_MOST_CHARACTERS = 1 << 22

# Seven characters hold 35 bits; a run of pycocotools, or the difference of two, has at most 33 with its sign.
_LONGEST_NUMBER = 7
_LONGEST_RUN = 1 << 40  # longer than any image; the sum of `_MOST_CHARACTERS` of them fits into 64 bits

_GOES_ON = 32  # a character's code from which on another one of the same number follows
_HIGHEST = 63
_NOT_ASCII = "\x7f"  # outside the alphabet, too

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


def check_texts(texts: Sequence[str], pixels: _Int64) -> CheckedRuns:
    """`check_characters` of M strings, whatever they hold."""
    joined = "".join(texts)
    if not joined.isascii():
        texts = [text if text.isascii() else _NOT_ASCII for text in texts]
        joined = "".join(texts)
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
    return check_characters(np.frombuffer(joined.encode("ascii"), np.uint8), offsets, pixels)


def check_characters(text: npt.NDArray[np.uint8], offsets: _Int64, pixels: _Int64) -> CheckedRuns:
    """What is wrong with each of many compressed run lengths, and how many pixels they cover.

    Args:
        text: [C] their characters, one mask after the other.
        offsets: [M + 1] where each begins, from 0 on, and the end of the last.
        pixels: [M] height * width of each mask's image.
    """
    faults = np.zeros(len(pixels), np.int8)
    sums, areas = np.zeros((2, len(pixels)), np.int64)
    huge = np.diff(offsets) > _MOST_CHARACTERS
    faults[huge] = _HUGE
    for masks in _groups(offsets, huge):
        part = text[offsets[masks.start] : offsets[masks.stop]]
        checked = _check_some(part, offsets[masks.start : masks.stop + 1] - offsets[masks.start], pixels[masks])
        faults[masks], sums[masks], areas[masks] = checked.faults, checked.pixels, checked.areas
    return CheckedRuns(faults, sums, areas)


def _groups(offsets: _Int64, huge: npt.NDArray[np.bool_]) -> Iterator[slice]:
    """Neighbouring masks with some `_CHARACTERS_AT_ONCE` characters together, without those of too many."""
    changes = np.diff(offsets[:-1] // _CHARACTERS_AT_ONCE, prepend=-1) != 0
    changes[1:] |= huge[1:] | huge[:-1]
    starts = np.flatnonzero(changes).tolist()
    yield from (slice(*ends) for ends in pairwise([*starts, len(huge)]) if not huge[ends[0]])


def _check_some(text: npt.NDArray[np.uint8], offsets: _Int64, pixels: _Int64) -> CheckedRuns:
    """`check_characters` of a group."""
    codes = text - np.uint8(48)  # what lies below becomes more than 200
    faults = _faults_of_text(codes, offsets)
    sums, areas = np.zeros((2, len(pixels)), np.int64)
    readable = faults == _SOUND
    if not readable.all():
        lengths = np.diff(offsets)
        codes = codes[np.repeat(readable, lengths)]
        offsets = np.concatenate(([0], np.cumsum(lengths[readable])))
    if len(codes):
        checked = _check_runs(codes, offsets, pixels[readable])
        faults[readable], sums[readable], areas[readable] = checked.faults, checked.pixels, checked.areas
    return CheckedRuns(faults, sums, areas)


def _faults_of_text(codes: _Codes, offsets: _Int64) -> npt.NDArray[np.int8]:
    """[M] what keeps a mask's text from being read as numbers."""
    faults = np.zeros(len(offsets) - 1, np.int8)
    filled = offsets[1:] > offsets[:-1]
    faults[~filled] = _EMPTY
    last = codes[offsets[1:][filled] - 1]
    faults[np.flatnonzero(filled)[(last & _GOES_ON) != 0]] = _CUT
    if codes.max(initial=0) > _HIGHEST:
        outside = np.flatnonzero(codes > _HIGHEST)
        faults[np.searchsorted(offsets, outside, side="right") - 1] = _ALPHABET
    return faults


def _check_runs(codes: _Codes, offsets: _Int64, pixels: _Int64) -> CheckedRuns:
    """`check_characters` of masks, at least one, whose text can be read."""
    numbers, first, long = _numbers(codes, offsets)
    runs, begins = _undo_differences(numbers, first)
    background, areas = np.add.reduceat(runs, begins, axis=1)
    sums: _Int64 = background + areas
    faults = np.where(sums == pixels, _SOUND, _SUM).astype(np.int8)
    # Where all masks have the right sum and no run is below 0, none is longer than its image either.
    if faults.any() or runs.min() < 0 or runs.max() > _LONGEST_RUN:
        least = np.minimum.reduceat(runs, begins, axis=1).min(axis=0)
        most = np.maximum.reduceat(runs, begins, axis=1).max(axis=0)
        faults[(least < 0) | (most > np.minimum(pixels, _LONGEST_RUN))] = _RUN
    faults[np.searchsorted(first, long, side="right") - 1] = _LONG
    return CheckedRuns(faults, sums, areas)


def _numbers(codes: _Codes, offsets: _Int64) -> tuple[_Int64, _Int64, _Int64]:
    """[N] numbers as they are written, [M + 1] the first of each mask, and indices of those too long to be a run.

    A number is 5 bits in a character, low bits first; bit 6 says that it goes on, bit 5 of the last one is the sign.
    """
    ends = np.flatnonzero(codes < _GOES_ON)
    lengths = np.diff(ends, prepend=-1)
    numbers = (codes[ends].astype(np.int64) ^ 16) - 16
    longer = np.flatnonzero(lengths > 1)
    for distance in range(1, _LONGEST_NUMBER):
        numbers[longer] = (numbers[longer] << 5) | (codes[ends[longer] - distance] & 31)
        longer = longer[lengths[longer] > distance + 1]
    return numbers, np.searchsorted(ends, offsets), longer


def _undo_differences(numbers: _Int64, first: _Int64) -> tuple[_Int64, _Int64]:
    """[2, P] runs of background and of the object, side by side, and [M] the pair that each mask begins with.

    From a mask's fourth number on, numbers are differences to the one two before. `first` [M + 1] is as of `_numbers`.
    A mask that ends with background has a run of 0 after it.
    """
    counts = np.diff(first)
    is_odd = counts % 2 == 1
    pairs = np.insert(numbers, first[1:][is_odd], 0).reshape(-1, 2).T.copy()
    ends = np.cumsum((counts + 1) // 2)
    begins = ends - (counts + 1) // 2
    # The third number is no difference, and neither are a mask's first two.
    several = begins[counts > 2]
    pairs[0, several + 1] -= pairs[0, several]
    pairs[:, begins[1:]] -= np.add.reduceat(pairs, begins, axis=1)[:, :-1]
    runs = np.cumsum(pairs, axis=1)
    runs[1, ends[is_odd] - 1] = 0
    return runs, begins
