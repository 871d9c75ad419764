"""Whether the label files of a run hold each id of its manifest exactly once, with no process ever seeing all ids.

    every file:    ids -> one part for each bucket, by a hash of the id      (split_ids)
    every bucket:  its parts of all files, labels against manifest           (match_bucket)

An id and its copies meet in the same bucket. A billion ids are 8 GB; a bucket holds some 20 million of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskrcnn_core.records.row_findings import NOTHING_FOUND, Findings, Offence

_Int64 = npt.NDArray[np.int64]

_SHOWN = 5
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # of Fibonacci hashing: 2^64 / golden ratio, odd
_NO_FILE = -1


@dataclass(frozen=True)
class IdPart:
    """Ids of one bucket from some files.

    Attributes:
        ids: [I], file by file.
        files: [F] number of each file.
        sizes: [F] how many of the ids are from it.
    """

    ids: _Int64
    files: npt.NDArray[np.int32]
    sizes: _Int64


def split_ids(ids_per_file: Sequence[_Int64], files: Sequence[int], num_buckets: int) -> list[IdPart]:
    """Parts of the ids of some files, one for each bucket.

    Args:
        ids_per_file: ids of each file.
        files: number of each file, to name the culprits by.
        num_buckets: at least 1.
    """
    ids = np.concatenate([np.empty(0, np.int64), *ids_per_file])
    file_of = np.repeat(np.asarray(files, np.int32), [len(part) for part in ids_per_file])
    hashed = (ids.view(np.uint64) * _MULTIPLIER) >> np.uint64(32)
    bucket = hashed % np.uint64(num_buckets)
    parts = []
    for number in range(num_buckets):
        chosen = bucket == number
        file_numbers, sizes = np.unique(file_of[chosen], return_counts=True)  # files come in ascending order
        parts.append(IdPart(ids[chosen], file_numbers.astype(np.int32), sizes.astype(np.int64)))
    return parts


def match_bucket(wanted: Sequence[_Int64], labelled: Sequence[IdPart], file_names: Sequence[str]) -> Findings:
    """Ids of one bucket that are missing, unknown, or there more than once.

    Args:
        wanted: the bucket's ids of the manifest, in parts.
        labelled: the bucket's ids of the label files, in parts.
        file_names: by file number.
    """
    expected = np.sort(np.concatenate([np.empty(0, np.int64), *wanted]))
    ids = np.concatenate([np.empty(0, np.int64), *(part.ids for part in labelled)])
    file_of = np.concatenate([np.empty(0, np.int32), *(np.repeat(part.files, part.sizes) for part in labelled)])
    order = np.argsort(ids, kind="stable")
    ids, file_of = ids[order], file_of[order]
    again = np.zeros(len(ids), np.bool_)
    again[1:] = ids[1:] == ids[:-1]
    twice = expected[1:][expected[1:] == expected[:-1]]
    unknown = np.flatnonzero(~_contains(expected, ids))
    return (
        _report("missing", expected[~_contains(ids, expected)], None, file_names, "no row", "one row for each image")
        + _report("unknown", ids[unknown], file_of[unknown], file_names, "a row", "only images of the manifest")
        + _repeated(ids, file_of, again, file_names)
        + _report("manifest", twice, None, file_names, "twice in the manifest", "unique ids")
    )


def _contains(sorted_ids: _Int64, wanted: _Int64) -> npt.NDArray[np.bool_]:
    if len(sorted_ids) == 0:
        return np.zeros(len(wanted), np.bool_)
    index = np.minimum(np.searchsorted(sorted_ids, wanted), len(sorted_ids) - 1)
    contained: npt.NDArray[np.bool_] = sorted_ids[index] == wanted
    return contained


def _report(
    check: str,
    ids: _Int64,
    file_of: npt.NDArray[np.int32] | None,
    file_names: Sequence[str],
    got: str,
    expected: str,
) -> Findings:
    if len(ids) == 0:
        return NOTHING_FOUND
    files = [_NO_FILE] * len(ids[:_SHOWN]) if file_of is None else file_of[:_SHOWN].tolist()
    first = tuple(
        Offence(check, got, expected, image_id, "" if file == _NO_FILE else file_names[file])
        for image_id, file in zip(ids[:_SHOWN].tolist(), files, strict=True)
    )
    return Findings({check: len(ids)}, first)


def _repeated(
    ids: _Int64, file_of: npt.NDArray[np.int32], again: npt.NDArray[np.bool_], file_names: Sequence[str]
) -> Findings:
    """One offence for each row too many, in the file of that row; says where the first one is."""
    indices = np.flatnonzero(again)
    if len(indices) == 0:
        return NOTHING_FOUND
    first = []
    for index in indices[:_SHOWN].tolist():
        before, here = file_names[file_of[index - 1]], file_names[file_of[index]]
        got = "another row in the same file" if before == here else f"another row, as in {before}"
        first.append(Offence("repeated", got, "one row for each image", int(ids[index]), here))
    return Findings({"repeated": len(indices)}, tuple(first))
