"""From where the runs of many masks start and end to COCO's compressed run lengths: a fixed number of tensor operations
for all of them, on the device where the positions lie, from which only the finished characters are copied.

COCO counts the pixels of an image down its columns: so many of background, so many of the object, and so on. A count,
from the fourth on less the count two before it, is written in groups of 5 bits, the lowest first, as many as show its
sign; a group is the character 48 + its bits, + 32 where another follows (`rleToString` of pycocotools).

Letters: D masks, R positions, K runs.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Some 100 bytes each while they are encoded. On the host what stays in a processor's caches is faster; a GPU would only
# be asked more often, and 1 << 20 need half the memory of the tables of `device_masks`.
_POSITIONS_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 20}

# The groups of a count lie in the bytes of a 64-bit integer, lowest first. At most 7, which is enough for 2^34 pixels.
_MOST_GROUPS = 7
_LEAST_OF_MORE = [16 << 5 * groups for groups in range(_MOST_GROUPS - 1)]  # from here on another group is needed
_BITS = [sum(31 << 8 * byte for byte in range(groups)) for groups in range(1, _MOST_GROUPS + 1)]
_ADDED = [
    sum((80 if byte + 1 < groups else 48) << 8 * byte for byte in range(groups))
    for groups in range(1, _MOST_GROUPS + 1)
]
_TABLES = np.array([*_LEAST_OF_MORE, *_BITS, *_ADDED], dtype=np.int64)


@torch.no_grad()
def encode_runs(positions: Tensor, lengths: NDArray[np.int64], areas: NDArray[np.int64]) -> list[str]:
    """COCO's compressed run lengths of each mask, the bytes that pycocotools makes of the same pixels.

    On a GPU the host waits three times for a million positions.

    Args:
        positions: [R] int64, column-major positions in the image, in order within a mask: first pixel of a run, first
            pixel after it, and so on, one mask after the other. A run may start where the one before ends.
        lengths: [D] how many positions each mask has, an even number, R together; on the host.
        areas: [D] height * width of the image of each, below 2^34; on the host.
    """
    encoded: list[str] = []
    ends = np.cumsum(lengths)
    for masks in _groups(ends - lengths, _POSITIONS_AT_ONCE[positions.device.type]):
        part = positions[ends[masks.start] - lengths[masks.start] : ends[masks.stop - 1]]
        encoded += _encode(part, lengths[masks], areas[masks])
    return encoded


def _groups(starts: NDArray[np.int64], at_once: int) -> Iterator[slice]:
    """Neighbouring masks, of which all but the last start within `at_once` positions."""
    fresh = np.flatnonzero(np.diff(starts // at_once, prepend=-1)).tolist()
    yield from (slice(*ends) for ends in pairwise([*fresh, len(starts)]))


def _encode(positions: Tensor, lengths: NDArray[np.int64], areas: NDArray[np.int64]) -> list[str]:
    """`encode_runs` of at least one mask, all at once."""
    masks = len(areas)
    closing = np.cumsum(lengths // 2 + 1) - 1
    sent = to_device(torch.from_numpy(np.concatenate((closing, areas, _TABLES))), positions.device)
    closing_runs, pixels, tables = sent.split([masks, masks, len(_TABLES)])
    counts, last, last_rows = _counts(positions, closing_runs, pixels)
    words, sizes = _words(_differences(counts, last), tables)
    # A mask that reaches the last pixel has no background after it, and any other no object after that.
    absent = counts[:, 1] == 0
    words[:, 1].masked_fill_(absent, 0)
    sizes[:, 1].masked_fill_(absent, 0)
    in_bytes = words.view(torch.uint8).view(-1)
    characters = in_bytes.masked_select(in_bytes != 0)  # how many there are is asked here
    ends = sizes.sum(dim=1).cumsum(dim=0)[last_rows]
    copied = torch.cat((ends.view(torch.uint8), characters)).cpu().numpy()
    text = copied[8 * masks :].tobytes().decode("ascii")
    return [text[start:end] for start, end in pairwise([0, *copied[: 8 * masks].view(np.int64).tolist()])]


def _counts(positions: Tensor, closing_runs: Tensor, areas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """COCO's counts, masks one after the other.

    Every mask gets a run without pixels at its image's end: what lies between that and the run before is the mask's
    last background, and where nothing does the two are one run, as any others that touch.

    Args:
        closing_runs: [D] the place of that run among all runs; areas: [D].

    Returns:
        [K, 2] pixels of background, then of the object; whether it is the last row of its mask [K]; these rows [D].
    """
    runs = positions.new_empty(len(positions) // 2 + len(areas), 2)
    closing = torch.zeros(len(runs), dtype=torch.bool, device=positions.device).index_fill_(0, closing_runs, True)
    runs.masked_scatter_(~closing[:, None], positions)
    runs.index_copy_(0, closing_runs, areas[:, None].expand(-1, 2).contiguous())
    apart = torch.ones_like(closing)  # from the run before
    torch.ne(runs[1:, 0], runs[:-1, 1], out=apart[1:])
    apart[1:] |= closing[:-1]
    first = apart.nonzero()[:, 0]  # of the runs that are one; how many there are is asked here
    final = first.roll(-1) - 1  # the one before the next; -1, the last of all, after which none comes
    begin, end, last = runs[first, 0], runs[final, 1], closing[final]
    background = begin - end.roll(1).masked_fill_(last.roll(1), 0)
    last_rows = torch.searchsorted(first, closing_runs, right=True) - 1
    return torch.stack((background, end - begin), dim=1), last, last_rows


def _differences(counts: Tensor, last: Tensor) -> Tensor:
    """Each count [K, 2] less the one two before, but for a mask's first three: what is written."""
    before = counts.roll(1, dims=0)
    opening = last.roll(1)
    before.masked_fill_(opening[:, None], 0)
    before[:, 0].masked_fill_(opening.roll(1), 0)
    return counts - before


def _words(values: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """Integers [...] -> their characters, in the bytes of an int64 from the lowest on, 0 after the last; how many."""
    least_of_more, bits, added = tables.split([_MOST_GROUPS - 1, _MOST_GROUPS, _MOST_GROUPS])
    more = torch.bucketize(values ^ (values >> 63), least_of_more, right=True)  # ~value needs as many as a negative one
    # The upper halves move away: 20 bits each 32, then 10 each 16, then 5 each 8.
    words = values & 0xFF_FFFF_FFFF
    for upper, shift in ((0xFF_FFF0_0000, 12), (0x000F_FC00_000F_FC00, 6), (0x03E0_03E0_03E0_03E0, 3)):
        words.add_(words & upper, alpha=(1 << shift) - 1)
    return (words & bits[more]).add_(added[more]), more + 1


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy from the host that it does not wait for."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
