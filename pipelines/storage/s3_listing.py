"""Pages of an S3 listing, and how a prefix is split so that many tasks list it at once.

A listing call returns 1,000 keys and the next one needs its answer, so that one caller gets some 10,000 keys a second
at best. Sub-prefixes are listed independently; a prefix without any is cut into key ranges.
"""

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.storage.s3_client import naming_s3, s3_client

# First characters of object names at which a long flat prefix is cut. A range without keys costs one request.
_CUTS = "".join(sorted(string.digits + string.ascii_letters + "_"))


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


def split_prefix(bucket: str, prefix: str, *, wanted: int = 64, depth: int = 3) -> list[KeyRange]:
    """Disjoint ranges that cover all keys below the prefix, for as many tasks.

    Args:
        bucket: its name.
        prefix: ends in `/`, or is empty for the whole bucket.
        wanted: stop looking deeper at so many ranges.
        depth: levels of sub-prefixes that are looked at.

    Raises:
        StorageError: the bucket is missing or cannot be listed.
    """
    s3 = s3_client()
    ranges: list[KeyRange] = []
    level = [prefix]
    for _ in range(depth):
        deeper: list[str] = []
        for parent in level:
            folders, keys, complete = _first_page(s3, bucket, parent)
            if not complete or not folders:
                # Flat, or too much to know after one page: cut by the keys' next character.
                ranges += [KeyRange(bucket, parent)] if complete else _cut(bucket, parent)
                continue
            deeper += folders
            if keys:  # objects beside the folders: everything below that is in none of them
                ranges += _between(bucket, parent, folders)
        if len(deeper) + len(ranges) >= wanted or not deeper:
            return ranges + [KeyRange(bucket, folder) for folder in deeper]
        level = deeper
    return ranges + [KeyRange(bucket, folder) for folder in level]


def _first_page(s3: Any, bucket: str, prefix: str) -> tuple[list[str], int, bool]:
    with naming_s3(f"s3://{bucket}/{prefix}"):
        page = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/")
    folders = [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
    return folders, len(page.get("Contents", [])), not page.get("IsTruncated", False)


def _cut(bucket: str, prefix: str) -> list[KeyRange]:
    edges = ["", *(prefix + character for character in _CUTS)]
    ends: list[str | None] = [*edges[1:], None]
    return [KeyRange(bucket, prefix, after, until) for after, until in zip(edges, ends, strict=True)]


def _between(bucket: str, prefix: str, folders: list[str]) -> list[KeyRange]:
    """Key ranges of `prefix` around its sub-folders, which are listed on their own."""
    last = "\U0010ffff"
    edges = ["", *(folder + last for folder in folders)]
    ends: list[str | None] = [*folders, None]
    return [KeyRange(bucket, prefix, after, until) for after, until in zip(edges, ends, strict=True)]


def objects(keys: KeyRange) -> Iterator[list[S3Object]]:
    """The objects of a range, a page at a time.

    Raises:
        StorageError: as `split_prefix`.
    """
    s3 = s3_client()
    arguments: dict[str, Any] = {"Bucket": keys.bucket, "Prefix": keys.prefix}
    if keys.after:
        arguments["StartAfter"] = keys.after
    while True:
        with naming_s3(f"s3://{keys.bucket}/{keys.prefix}"):
            page = s3.list_objects_v2(**arguments)
        listed = [
            S3Object(entry["Key"], int(entry["Size"]), entry.get("ETag", "").strip('"'))
            for entry in page.get("Contents", [])
        ]
        until = keys.until
        inside = listed if until is None else [entry for entry in listed if entry.key.encode() <= until.encode()]
        if inside:
            yield inside
        if len(inside) < len(listed) or not page.get("IsTruncated", False):
            return
        arguments["ContinuationToken"] = page["NextContinuationToken"]
