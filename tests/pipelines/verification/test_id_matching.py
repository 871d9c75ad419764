import numpy as np
import pytest

from pipelines.verification.id_matching import match_bucket, split_ids

NAMES = ("a", "b", "c")


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def match(wanted: np.ndarray, *labelled: np.ndarray) -> dict[str, int]:
    parts = split_ids(labelled, range(len(labelled)), 1)
    return dict(match_bucket([wanted], parts, NAMES).counts)


def test_every_id_once_is_nothing_found() -> None:
    assert match(ids(1, 2, 3, 2**62), ids(3, 1), ids(2**62, 2)) == {}
    assert match(ids()) == {}
    assert match(ids(), ids()) == {}


def test_missing_unknown_and_repeated_are_told_apart() -> None:
    assert match(ids(1, 2, 3), ids(1), ids(3)) == {"missing": 1}
    assert match(ids(1, 2), ids(1, 2, 9)) == {"unknown": 1}
    assert match(ids(1, 2), ids(1, 2), ids(2)) == {"repeated": 1}
    assert match(ids(1, 2), ids(1, 1, 1, 2)) == {"repeated": 2}
    assert match(ids(1, 1, 2), ids(1, 2)) == {"manifest": 1}
    assert match(ids(), ids(4)) == {"unknown": 1}
    assert match(ids(4)) == {"missing": 1}


def test_offenders_carry_their_file() -> None:
    parts = split_ids([ids(1, 2), ids(2, 7), ids(5, 5)], range(3), 1)
    findings = match_bucket([ids(1, 2, 5)], parts, NAMES)
    shown = {(offence.check, offence.image_id, offence.file): offence.got for offence in findings.first}
    assert shown == {
        ("unknown", 7, "b"): "a row",
        ("repeated", 2, "b"): "another row, as in a",
        ("repeated", 5, "c"): "another row in the same file",
    }


@pytest.mark.parametrize("num_buckets", [1, 3, 16])
def test_buckets_find_the_same_as_one(num_buckets: int) -> None:
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 2**63 - 1, 2000)
    files = [wanted[:700], np.append(wanted[690:1500], 12), wanted[1510:]]
    wanted_parts = split_ids([wanted], [0], num_buckets)
    label_parts = split_ids(files, range(3), num_buckets)
    assert sum(len(part.ids) for part in label_parts) == sum(map(len, files))
    counts: dict[str, int] = {}
    for bucket in range(num_buckets):
        found = match_bucket([wanted_parts[bucket].ids], [label_parts[bucket]], NAMES)
        for check, count in found.counts.items():
            counts[check] = counts.get(check, 0) + count
    assert counts == {"missing": 10, "unknown": 1, "repeated": 10}
    sizes = [len(part.ids) for part in wanted_parts]
    assert min(sizes) > 0.6 * len(wanted) / num_buckets  # also ids in a row fill the buckets evenly
    assert min(len(part.ids) for part in split_ids([np.arange(2000)], [0], num_buckets)) > 0.6 * 2000 / num_buckets
