"""Images among the keys of object stores: ranges of S3's, and prefixes of stores beside it."""

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipelines.images.parts import IMAGE_EXTENSIONS, Entries, Part, is_hidden
from pipelines.images.shards import shard_kind
from pipelines.storage import s3_listing
from pipelines.storage.object_stores import is_path, list_objects
from pipelines.storage.s3_listing import S3Object


def key_entries(part: Part) -> Iterator[Entries]:
    """The images of a range of S3's keys, a page at a time; what is left of a long one is named."""
    assert part.keys is not None
    for page in s3_listing.pages(part.keys):
        some = _images_of(page.objects, part)
        left = () if page.left is None else (replace(part, keys=page.left),)
        yield replace(some, left=(*some.left, *left))


def object_entries(part: Part) -> Iterator[Entries]:
    """A prefix of a store beside S3, which one task lists whole."""
    for objects in list_objects(part.path):
        yield _images_of(objects, part)


def _images_of(objects: Sequence[S3Object], part: Part) -> Entries:
    """The images among listed objects, without what is hidden or does not match the part's pattern."""
    pattern = re.compile(part.pattern, re.DOTALL) if part.pattern is not None else None
    scheme, _, rest = part.root.partition("://")
    container, _, root = rest.rstrip("/").partition("/")
    skip = len(root) + 1 if root else 0
    names = [(entry, entry.key[skip:]) for entry in objects if not entry.key.endswith("/")]
    seen = [entry for entry, name in names if not is_hidden(name) and (not pattern or pattern.fullmatch(name))]
    files = [(shard_kind(entry.key, part) if scheme == "s3" else None, entry) for entry in seen]
    shards = [(kind, entry) for kind, entry in files if kind is not None and is_path(entry.key)]
    # Arrow cannot open those of odd names: each is a row that says so.
    odd = [entry for kind, entry in files if kind is not None and not is_path(entry.key)]
    images = [entry for entry in seen if entry.key.lower().endswith(IMAGE_EXTENSIONS)] + odd
    return Entries(
        [f"{scheme}://{container}/{entry.key}" for entry in images],
        sizes=[entry.size for entry in images],
        etags=[entry.etag for entry in images],
        others=len(seen) - len(images) - len(shards),
        left=tuple(
            Part(kind, uri, root=posixpath.dirname(uri))
            for kind, uri in ((kind, f"{scheme}://{container}/{entry.key}") for kind, entry in shards)
        ),
    )
