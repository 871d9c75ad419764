"""An S3 listing in ranges of keys that many tasks list at once, whatever the names are.

A listing call returns 1,000 keys and the next one needs its answer, so that one caller gets some 10,000 keys a second
at best. A caller that has listed many pages of a range, and finds no end, therefore goes on in strides. All keys that
are left share some first characters, which a few small requests find. The next page is asked for behind all keys whose
following character is that of the last key, and so on to the end of the range: what a stride passes over is a range of
its own, for another task. Nothing is listed twice, since the pages of the strides are kept as well.

Keys are compared as text: the order of code points is that of UTF-8's bytes, in which S3 lists.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipelines.storage.s3_client import naming_s3, s3_client

# Pages that a task lists one after the other (some ten seconds) before it leaves ranges to others, and strides that it
# makes then at most. Ten to a hundred times fewer would cost a task and a half-empty page for every few full ones.
_MOST_PAGES = 128

# S3's own limit.
_PAGE_KEYS = 1000

_LAST_CHARACTER = "\U0010ffff"


@dataclass(frozen=True)
class S3Object:
    """One listed object; `key` is whole, without the bucket."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class KeyRange:
    """Keys below `prefix` that come after `after` and not after `until` (None = to the end), in byte order."""

    bucket: str
    prefix: str
    after: str = ""
    until: str | None = None


@dataclass(frozen=True)
class Page:
    """Objects of a range, in order.

    Attributes:
        objects: at most 1,000.
        left: keys before these that were passed over, and that another task has to list.
    """

    objects: list[S3Object]
    left: KeyRange | None = None


def split_prefix(bucket: str, prefix: str) -> list[KeyRange]:
    """Disjoint ranges that cover all keys below the prefix, in order; one where they are a page or less.

    Args:
        bucket: its name.
        prefix: ends in `/`, or is empty for the whole bucket.

    Raises:
        StorageError: the bucket is missing or cannot be listed.
    """
    whole = KeyRange(bucket, prefix)
    first, is_last = _listed(whole, _PAGE_KEYS)
    if is_last:
        return [whole]
    strides = _strides(replace(whole, after=first[-1].key), 1)
    passed = [page.left for page in strides if page.left is not None and page.left.until is not None]
    if not passed:
        return [whole]
    shared = passed[0].prefix[:-1]  # by all keys but those of the first page
    edges = [left.until for left in passed]
    behind = [KeyRange(bucket, shared, str(edge), end) for edge, end in zip(edges, [*edges[1:], None], strict=True)]
    return [replace(whole, until=edges[0]), *behind]


def pages(keys: KeyRange) -> Iterator[Page]:
    """The objects of a range, a page at a time; of a long one only some, with ranges that hold all others.

    Raises:
        StorageError: as `split_prefix`.
    """
    for _ in range(_MOST_PAGES):
        objects, is_last = _listed(keys, _PAGE_KEYS)
        yield Page(objects)
        if is_last:
            return
        keys = replace(keys, after=objects[-1].key)
    yield from _strides(keys, _PAGE_KEYS)


def _strides(keys: KeyRange, page_keys: int) -> Iterator[Page]:
    """Pages of `page_keys` keys throughout a range that begins after one of its keys, with what lies between them."""
    shared = _shared_characters(keys)
    for _ in range(_MOST_PAGES):
        child = keys.after[: shared + 1]
        edge = max(child + _LAST_CHARACTER, keys.after)
        beyond = replace(keys, after=edge)
        objects, is_last = _listed(beyond, page_keys)
        if not objects:
            keys = replace(keys, prefix=child)
            break
        yield Page(objects, KeyRange(keys.bucket, child, keys.after, edge) if edge > keys.after else None)
        if is_last:
            return
        keys = replace(keys, after=objects[-1].key)
    yield Page([], keys)


def _shared_characters(keys: KeyRange) -> int:
    """How many first characters the keys of a range share with the one that it begins after.

    The last key cannot be asked for, but whether there are keys behind all those that begin alike: their number of
    characters is searched for by doubling, then by halving.
    """
    low = high = len(keys.prefix)
    step = 1
    while high < len(keys.after) and not _goes_beyond(keys, keys.after[: high + 1]):
        low, high, step = high + 1, min(high + step, len(keys.after)), 2 * step
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _goes_beyond(keys, keys.after[: middle + 1]) else (middle + 1, high)
    return low


def _goes_beyond(keys: KeyRange, beginning: str) -> bool:
    """Whether a range has keys behind all those that begin so."""
    return bool(_listed(replace(keys, after=max(beginning + _LAST_CHARACTER, keys.after)), 1)[0])


def _listed(keys: KeyRange, most: int) -> tuple[list[S3Object], bool]:
    """The first objects of a range, and whether there are no others; one request as a rule."""
    arguments: dict[str, Any] = {"Bucket": keys.bucket, "Prefix": keys.prefix, "MaxKeys": most}
    if keys.after:
        arguments["StartAfter"] = keys.after
    with naming_s3(f"s3://{keys.bucket}/{keys.prefix}"):
        page = s3_client().list_objects_v2(**arguments)
        while not page.get("Contents") and page.get("IsTruncated"):  # a store that has only passed deleted keys so far
            page = s3_client().list_objects_v2(**arguments, ContinuationToken=page["NextContinuationToken"])
    found = page.get("Contents", [])
    inside = [entry for entry in found if keys.until is None or entry["Key"] <= keys.until]
    objects = [S3Object(entry["Key"], int(entry["Size"]), entry.get("ETag", "").strip('"')) for entry in inside]
    return objects, len(inside) < len(found) or not page.get("IsTruncated", False)
