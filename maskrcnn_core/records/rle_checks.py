"""The run lengths of label rows, checked where they lie in Arrow's memory, without a Python string."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from maskrcnn_core.compressed_runs import FAULTS, CheckedRuns, check_characters

__all__ = ["FAULTS", "CheckedRuns", "check_runs"]

_Int64 = npt.NDArray[np.int64]


def check_runs(counts: pa.Array, pixels: _Int64) -> CheckedRuns:
    """What is wrong with each of many compressed run lengths, and how many pixels they cover.

    Args:
        counts: [M] strings without nulls, as in a record's `segmentation.counts`.
        pixels: [M] height * width of each mask's image.
    """
    return check_characters(*_characters(counts), pixels)


def _characters(counts: pa.Array) -> tuple[npt.NDArray[np.uint8], _Int64]:
    """[C] bytes of all strings, and [M + 1] where each begins."""
    array = counts.cast(pa.large_string())
    if len(array) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[array.offset : array.offset + len(array) + 1]
    text = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.zeros(0, np.uint8)
    return text[offsets[0] : offsets[-1]], offsets - offsets[0]
