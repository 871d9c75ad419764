"""Masks as Label Studio's brush regions: bits of the rle-pack format over the image's RGBA bytes.

Format: @thi.ng/rle-pack, as Label Studio reads it (label_studio_sdk.converter.brush, `decode_rle`): 32 bits the number
of bytes, 5 the bits of a word - 1, four times 4 the widths of a length - 1; then for every run 1 bit that it is one, 2
bits which width, its length - 1 in so many bits, and the word. A pixel is four equal bytes, rows one after another.
"""

import numpy as np
import numpy.typing as npt

from maskrcnn_core.data.segmentation import ObjectMask

_Int64 = npt.NDArray[np.int64]

_CHANNELS = 4
_WORD_BITS = 8
_WIDTHS = (4, 8, 12, 16)  # bits of a run's length
_LONGEST_RUN = 1 << _WIDTHS[-1]


def rle_brush(mask: ObjectMask, height: int, width: int) -> list[int]:
    """The whole image's bytes, 255 where the object is, packed.

    Args:
        mask: the object's pixels.
        height, width: of the image, pixels.

    Returns:
        Numbers from 0 to 255.
    """
    lengths, values = _split_long(*_runs(mask, height, width))
    width_index = np.searchsorted([1 << bits for bits in _WIDTHS], lengths)
    length_bits = np.array(_WIDTHS)[width_index]
    header = (height * width * _CHANNELS, 32), (_WORD_BITS - 1, 5), *((bits - 1, 4) for bits in _WIDTHS)
    numbers = ((0b100 | width_index) << length_bits | (lengths - 1)) << _WORD_BITS | values
    head = _bits(np.array([number for number, _ in header]), np.array([bits for _, bits in header]))
    packed: list[int] = np.packbits(np.concatenate([head, _bits(numbers, 3 + length_bits + _WORD_BITS)])).tolist()
    return packed


def _runs(mask: ObjectMask, height: int, width: int) -> tuple[_Int64, _Int64]:
    """Lengths in bytes and values of the image's runs along its rows; only the mask's own rectangle is looked at."""
    rows, columns = mask.pixels.shape
    bordered = np.zeros((rows, columns + 1), np.int8)  # a column of background ends each row's runs
    bordered[:, :-1] = mask.pixels
    steps = np.diff(bordered.ravel(), prepend=np.int8(0))
    begins, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    borders = [(edge // (columns + 1) + mask.top) * width + edge % (columns + 1) + mask.left for edge in (begins, ends)]
    edges = np.concatenate([[0], np.stack(borders, axis=1).ravel(), [height * width]])
    lengths = np.diff(edges) * _CHANNELS
    values = np.where(np.arange(len(lengths)) % 2 == 1, 255, 0)
    return lengths[lengths > 0], values[lengths > 0]


def _split_long(lengths: _Int64, values: _Int64) -> tuple[_Int64, _Int64]:
    """The same runs, none longer than the widest length can say."""
    pieces = -(-lengths // _LONGEST_RUN)
    split = np.full(int(pieces.sum()), _LONGEST_RUN, np.int64)
    split[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST_RUN
    return split, np.repeat(values, pieces)


def _bits(numbers: _Int64, widths: _Int64) -> npt.NDArray[np.uint8]:
    """The numbers one after another, each in its number of bits, high bits first."""
    ends = np.cumsum(widths)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for bit in range(int(widths.max(initial=0))):
        wide = widths > bit
        bits[ends[wide] - 1 - bit] = (numbers[wide] >> bit) & 1
    return bits
