"""Ranges of an S3 prefix, listed as many tasks would: every key once, in few requests, whatever the names are."""

import datetime
import hashlib
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.storage import s3_listing
from pipelines.storage.s3_listing import KeyRange, pages, split_prefix
from tests.pipelines.storage.synthetic_s3 import NumberedKeys, SyntheticS3

COUNT = 60_000


@dataclass(frozen=True)
class Listing:
    """What a whole listing brought: the keys of each task in the order of the tasks' first ones, and the requests."""

    tasks: list[list[str]]
    requests: list[int]
    split_requests: int
    depth: int

    @property
    def keys(self) -> list[str]:
        return [key for task in self.tasks for key in task]


def list_all(s3: SyntheticS3, prefix: str = "set/") -> Listing:
    """Lists ranges one after the other, as tasks do side by side; `depth` is how many tasks had to follow another."""
    ranges = deque((keys, 1) for keys in split_prefix("bucket", prefix))
    split_requests = s3.requests
    tasks, requests, depth = [], [], 0
    while ranges:
        keys, level = ranges.popleft()
        before, listed = s3.requests, []
        for page in pages(keys):
            listed += [entry.key for entry in page.objects]
            ranges += [] if page.left is None else [(page.left, level + 1)]
        tasks.append(listed)
        requests.append(s3.requests - before)
        depth = max(depth, level)
    return Listing(tasks, requests, split_requests, depth)


def hashes(count: int) -> list[str]:
    return [f"set/{hashlib.sha256(str(number).encode()).hexdigest()}.jpg" for number in range(count)]


def moments(count: int) -> list[str]:
    start = datetime.datetime(2024, 1, 30, 11, 22, 33)
    return [f"set/{start + datetime.timedelta(seconds=7 * number):%Y/%m/%d/cam-%H%M%S}.png" for number in range(count)]


def beginnings(count: int) -> list[str]:
    """Keys that are the beginnings of others: a, aa, aaa, ..., b, bb, ... up to some 1,000 characters."""
    return [f"set/{chr(97 + number % 26)}" + chr(97 + number % 26) * (number // 26 % 900) for number in range(count)]


def foreign(count: int) -> list[str]:
    """Characters of one to four bytes, among them the last of all."""
    letters = "aZ~éß中文字\uffff\U0001f600\U0010fffe\U0010ffff"
    draw = random.Random(1)
    return [f"set/{''.join(draw.choices(letters, k=5))}.jpg" for _ in range(count)]


def around_the_splits(count: int) -> list[str]:
    """Folders with markers, and names that sort just before and after what is in them."""
    names = [f"set/{letter}{end}" for letter in "0a" for end in ("", "/", ".", "0", "/.", "\U0010ffff", "\U0010ffff/x")]
    return names + [f"set/{'0a'[number % 2]}/{number:07d}" for number in range(count)]


NAMINGS: dict[str, Callable[[int], Sequence[str]]] = {
    "numbers": lambda count: [f"set/{number}.jpg" for number in range(count)],
    "padded numbers": lambda count: NumberedKeys("set/", count),
    "hashes": hashes,
    "moments": moments,
    "one deep folder": lambda count: NumberedKeys("set/" + "deeper/" * 40, count),
    "beginnings": beginnings,
    "foreign": foreign,
    "around the splits": around_the_splits,
    "a few beside many": lambda count: ["set/a.jpg", *NumberedKeys("set/b", count), "set/c.jpg"],
    "folders of one image": lambda count: [f"set/{number:09d}/image.jpg" for number in range(count)],
}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SyntheticS3]:
    """Makes keys the content of the bucket; tasks list few pages, so that there are many tasks."""

    def serve(keys: Sequence[str], most_pages: int = 8) -> SyntheticS3:
        s3 = SyntheticS3(keys)
        monkeypatch.setattr(s3_listing, "s3_client", lambda: s3)
        monkeypatch.setattr(s3_listing, "_MOST_PAGES", most_pages)
        return s3

    return serve


def in_order(names: Sequence[str]) -> Sequence[str]:
    return names if isinstance(names, NumberedKeys) else sorted(set(names), key=str.encode)


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_key_comes_once_and_in_order(naming: str, serve: Callable[..., SyntheticS3]) -> None:
    keys = in_order(NAMINGS[naming](COUNT))
    listing = list_all(serve(keys))
    assert sorted(listing.keys) == list(keys)
    assert all(task == sorted(task) for task in listing.tasks)
    assert max(listing.requests) <= 8 + 8 + 2 * 12  # pages, strides, and looking for what keys share


@pytest.mark.parametrize("naming", [name for name in NAMINGS if name != "beginnings"])
def test_the_longest_chain_of_requests_is_short(naming: str, serve: Callable[..., SyntheticS3]) -> None:
    keys = in_order(NAMINGS[naming](COUNT))
    listing = list_all(serve(keys))
    one_caller = len(keys) / 1000
    assert len(listing.tasks) > one_caller / 16
    assert listing.depth <= 4
    assert listing.split_requests + sum(listing.requests) < 2.5 * one_caller  # small tasks here, half a page each


def test_numbered_names_need_hardly_more_requests_than_pages(serve: Callable[..., SyntheticS3]) -> None:
    s3 = serve(NumberedKeys("set/", 400_000), most_pages=32)
    listing = list_all(s3)
    assert listing.keys[:1000] == [f"set/{number:012d}.jpg" for number in range(1000)]
    assert len(listing.keys) == len(set(listing.keys)) == 400_000
    assert s3.requests < 1.15 * 400
    assert len(listing.tasks) >= 30
    assert max(listing.requests) <= 32 + 16  # pages, strides, and looking for what keys share


def test_a_page_or_less_is_one_range(serve: Callable[..., SyntheticS3]) -> None:
    for count in (0, 1, 1000):
        s3 = serve(NumberedKeys("set/", count))
        assert split_prefix("bucket", "set/") == [KeyRange("bucket", "set/")]
        assert s3.requests == 1
        assert len(list_all(s3).keys) == count
    serve(NumberedKeys("set/", 1001))
    assert len(split_prefix("bucket", "set/")) > 1


def test_the_ranges_of_a_prefix_hold_nothing_beside_it(serve: Callable[..., SyntheticS3]) -> None:
    inside = list(NumberedKeys("set/", 3000))
    s3 = serve(sorted(["a", "se", "set", "set.jpg", *inside, "set0", "set0/1.jpg", "z"]))
    assert sorted(list_all(s3).keys) == inside
    assert sorted(list_all(s3, "").keys)[:4] == ["a", "se", "set", "set.jpg"]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.text(st.sampled_from("ab/~\U0010ffff"), min_size=1, max_size=9), max_size=400))
def test_any_names_in_pages_of_three(names: set[str]) -> None:
    keys = sorted((f"set/{name}" for name in names), key=str.encode)
    with pytest.MonkeyPatch.context() as patch:
        s3 = SyntheticS3(keys)
        patch.setattr(s3_listing, "s3_client", lambda: s3)
        patch.setattr(s3_listing, "_MOST_PAGES", 2)
        patch.setattr(s3_listing, "_PAGE_KEYS", 3)
        listing = list_all(s3)
    assert sorted(listing.keys, key=str.encode) == keys


def test_a_server_gives_the_same_keys_as_one_listing(s3_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = boto3.client("s3")
    names = [f"{number:06d}.jpg" for number in range(150)] + ["a b", "é/中 1.jpg", "x", "x/", "x/1", "x0", "~"]
    for name in names:
        client.put_object(Bucket="bucket", Key=f"set/{name}", Body=b"x")
    client.put_object(Bucket="bucket", Key="set0", Body=b"x")
    serial = client.list_objects_v2(Bucket="bucket", Prefix="set/")["Contents"]
    monkeypatch.setattr(s3_listing, "_MOST_PAGES", 2)
    monkeypatch.setattr(s3_listing, "_PAGE_KEYS", 10)
    ranges, found = split_prefix("bucket", "set/"), []
    assert len(ranges) == 3
    while ranges:
        listed = list(pages(ranges.pop()))
        found += [entry for page in listed for entry in page.objects]
        ranges += [page.left for page in listed if page.left is not None]
    assert sorted(entry.key for entry in found) == sorted(entry["Key"] for entry in serial)
    assert len(found) == len(names)
    assert {(entry.size, entry.etag) for entry in found} == {(1, serial[0]["ETag"].strip('"'))}
