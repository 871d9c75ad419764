"""What `--images` may name, seen as parts that can be listed independently of each other.

A folder becomes its sub-folders, an S3 prefix ranges of its keys, an S3 inventory its files; a COCO json, a table of
uris or a tar shard is one part. `entries` lists one part, some thousands of images at a time, so that no process ever
holds all names; a long range of keys is listed in part, and names the ranges and the tar shards that are left.
"""

import contextlib
import hashlib
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
import pyarrow.fs

from maskrcnn_core.data.files import uri_of
from maskrcnn_core.errors import ConfigError, StorageError
from pipelines import storage
from pipelines.images.parquet_images import PARQUET_EXTENSION
from pipelines.images.parts import BATCH_ROWS, IMAGE_EXTENSIONS, Entries, Kind, Part
from pipelines.images.tables import (
    coco_entries,
    csv_entries,
    find_image_root,
    inventory_parquet_entries,
    inventory_parts,
    is_inventory,
    parquet_entries,
)
from pipelines.images.tar_shards import TAR_EXTENSION, tar_entries
from pipelines.storage import s3_listing
from pipelines.storage.object_stores import is_beside_s3, is_path, is_prefix, list_objects
from pipelines.storage.s3_listing import S3Object

# Sub-folders of a local folder that are looked for before it is listed, to know how many tasks are worth it.
_MOST_LOCAL_PARTS = 256


@dataclass(frozen=True)
class Source:
    """What a setting `images` names.

    Attributes:
        images: the setting, absolute.
        kind: what it is.
        parts: to list.
        stamp: changes when the source does: of a file its size and time or etag, of a local folder the times of all
            its folders. Empty where only listing again could tell (S3 prefixes).
    """

    images: str
    kind: Kind
    parts: tuple[Part, ...]
    stamp: str


def open_source(images: str, image_root: str | None = None) -> Source:
    """Find out what `images` names, without listing it.

    Args:
        images: a folder (searched recursively), a glob (`**` crosses folders), one image, a COCO json, an S3
            inventory's manifest.json, a .parquet or .csv with a `uri` column, a .parquet with the images themselves, a
            .tar file; .tar files in folders and below globs and prefixes are looked into as well, and .parquet files
            that a glob names (`data/*.parquet`). Local or s3://; folders, globs and single
            images at gs://, az:// or abfs:// as well.
        image_root: folder that the file names of a COCO json are relative to; None looks beside the json, and reads
            absolute names where they are.

    Raises:
        StorageError: nothing is there, or it is nothing of the kind.
        AnnotationError: a COCO json or an inventory is malformed.
        ConfigError: `image_root` is given where it has no meaning.
    """
    kind = _kind(images)
    if image_root is not None and kind != "coco":
        raise ConfigError(f"image_root: only has a meaning with a COCO json, but images is {images!r}; drop it")
    absolute = storage.absolute(images)
    if storage.is_local(images):  # names are joined to paths: to a URI they would have to be quoted
        images = absolute
        image_root = None if image_root is None else storage.absolute(image_root)
    if kind == "coco":
        parts: tuple[Part, ...] = (Part(kind, images, root=find_image_root(images, image_root)),)
    elif kind == "inventory":
        parts = inventory_parts(images)
    elif kind in ("parquet", "csv", "file", "tar"):
        parts = (Part(kind, images, root=posixpath.dirname(images) or "."),)
    else:
        root, pattern = _split_glob(images) if kind == "glob" else (images, None)
        parts = _folder_parts(kind, root, pattern, images)
    return Source(absolute, kind, parts, source_stamp(absolute, kind))


def source_stamp(images: str, kind: Kind) -> str:
    """Changes when the source does; see `Source`. Costs a look at each folder of a local one, nothing on S3."""
    if is_beside_s3(images):
        return ""
    if kind in ("folder", "glob"):
        root = _split_glob(images)[0] if kind == "glob" else images
        return _folders_stamp(root) if storage.is_local(root) else ""
    filesystem, path = storage.filesystem_and_path(images)
    info = filesystem.get_file_info(path)
    return f"{info.size} bytes of {info.mtime}"


def _folders_stamp(root: str) -> str:
    """A name that is added, removed or renamed changes the time of its folder."""
    digest = hashlib.sha256()
    _, top = storage.filesystem_and_path(root)
    for folder, subfolders, _ in os.walk(top):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        with contextlib.suppress(OSError):  # one that is gone by now is as one that never was
            digest.update(os.fsencode(f"{os.path.relpath(folder, top)}\t{os.stat(folder).st_mtime_ns}\n"))
    return digest.hexdigest()[:32]


def entries(part: Part) -> Iterator[Entries]:
    """The images of a part, at most some ten thousand at a time.

    Raises:
        StorageError, AnnotationError: it cannot be read.
    """
    if part.kind == "coco":
        yield from coco_entries(part)
    elif part.kind == "parquet":
        yield from parquet_entries(part)
    elif part.kind in ("csv", "inventory"):
        yield from csv_entries(part) if not part.path.endswith(".parquet") else inventory_parquet_entries(part)
    elif part.kind == "tar":
        yield from tar_entries(part)
    elif part.keys is not None:
        yield from _key_entries(part)
    elif part.kind != "file" and is_beside_s3(part.path):
        yield from _object_entries(part)
    else:
        yield from _local_entries(part)


# ---- what a name stands for ------------------------------------------------------------------------------------------


def _kind(images: str) -> Kind:
    if is_beside_s3(images):
        return _kind_beside_s3(images)
    filesystem, path = storage.filesystem_and_path(images)
    with storage.naming(images):
        info = filesystem.get_file_info(path)
    if info.type == pa.fs.FileType.Directory:
        return "folder"
    if info.type == pa.fs.FileType.NotFound:
        if _is_glob(images):
            return "glob"
        raise StorageError(
            f"images: no file or folder {images!r}; expected a folder, glob, COCO json, S3 inventory, .parquet or .csv"
        )
    extension = posixpath.splitext(path)[1].lower()
    if extension in IMAGE_EXTENSIONS:
        return "file"
    if extension == ".json":
        return "inventory" if is_inventory(images) else "coco"
    if extension in (".parquet", ".csv"):
        return "parquet" if extension == ".parquet" else "csv"
    if extension == TAR_EXTENSION:
        return "tar"
    raise StorageError(
        f"images: {images!r} is no image, COCO .json, S3 inventory, .parquet, .csv or .tar; "
        "expected one of them, or a folder or glob of images or .tar files"
    )


def _kind_beside_s3(images: str) -> Kind:
    if posixpath.splitext(images)[1].lower() in IMAGE_EXTENSIONS and not _is_glob(images):
        return "file"
    if is_prefix(images):
        return "folder"
    if _is_glob(images):
        return "glob"
    raise StorageError(
        f"images: no objects below {images!r}; expected a prefix, glob or image there (a COCO json, .parquet or .csv "
        "is read from a local path or s3://: copy it)"
    )


def _is_glob(text: str) -> bool:
    return any(character in text for character in "*?[")


def _split_glob(glob: str) -> tuple[str, str]:
    """The folder before the first wildcard, and what names below it must match."""
    parts = glob.split("/")
    wild = [index for index, part in enumerate(parts) if _is_glob(part)]
    while len(wild) > 1 and storage.is_local(glob) and os.path.isdir("/".join(parts[: wild[0] + 1])):
        del wild[0]  # a folder of just this name, as `set [1]`
    first = wild[0]
    root = "/".join(parts[:first]) or ("/" if glob.startswith("/") else ".")
    return root, _glob_regex("/".join(parts[first:]))


def _glob_regex(glob: str) -> str:
    """`**/` any folders, `*` and `?` within one name, `[...]` a set, `[!...]` all others."""
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translate(match: re.Match[str]) -> str:
        token = match.group()
        if token in pieces:
            return pieces[token]
        if len(token) > 2 and token.startswith("["):
            inner = token[1:-1].replace("\\", "\\\\").replace("[", "\\[")
            return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
        return re.escape(token)

    regex = re.sub(r"\*\*/|\*\*|\*|\?|\[!?[^\]/]+\]|[^*?\[]+|\[", translate, glob)
    try:
        re.compile(regex)
    except re.error as error:
        raise ConfigError(f"images: {glob!r} is no pattern of names: {error}; correct what stands in [ ]") from None
    return regex


# ---- folders and prefixes --------------------------------------------------------------------------------------------


def _folder_parts(kind: Kind, root: str, pattern: str | None, images: str) -> tuple[Part, ...]:
    if is_beside_s3(root):
        return (Part(kind, root, pattern=pattern, root=root),)
    if not storage.is_local(root):
        bucket, _, prefix = root.removeprefix("s3://").strip("/").partition("/")
        ranges = s3_listing.split_prefix(bucket, f"{prefix}/" if prefix else "")
        return tuple(Part(kind, root, pattern=pattern, root=root, keys=keys) for keys in ranges)
    _, top = storage.filesystem_and_path(root)
    if not os.path.isdir(top):
        raise StorageError(f"images: no folder {root!r} (from {images!r}); check the path")
    shallow, deep = _split_folder(top)
    parts = [Part(kind, folder, recursive=False, pattern=pattern, root=top) for folder in shallow]
    return tuple(parts + [Part(kind, folder, pattern=pattern, root=top) for folder in deep])


def _split_folder(top: str) -> tuple[list[str], list[str]]:
    """Folders to list without, and with, what is below them; together they cover `top`."""
    shallow, deep = [], [top]
    walk = _Walk(top, top)
    _scanned(top)  # what cannot be listed below is left to whoever lists it
    while len(deep) < _MOST_LOCAL_PARTS // 4:
        below = [(folder, walk.subfolders(folder)) for folder in deep]
        if not any(children for _, children in below):
            break
        shallow += [folder for folder, _ in below]
        deep = [child for _, children in below for child in children]
        if not deep:
            break
    return shallow, deep


class _Walk:
    """Folders below a top one, each of them once: a link to one that is listed under its own name is left out, and one
    that leads out is followed once, so that links that lead in circles come to an end.

    Args:
        top: the folder that everything is listed of.
        start: where this walk begins, in it.
    """

    def __init__(self, top: str, start: str) -> None:
        self._top = os.path.realpath(top)
        self._outside: set[tuple[int, int]] = set()  # folders that links have led to, by device and inode
        while not self._has_own_name(start):  # begun outside: it does not come back to where it came from
            with contextlib.suppress(OSError):
                self._is_new(os.stat(start))
            start = os.path.dirname(start)

    def subfolders(self, folder: str) -> list[str]:
        """The folders in a folder, without hidden ones; none where it cannot be listed."""
        try:
            return [entry.path for entry in _scanned(folder) if self.is_folder(entry)]
        except StorageError:
            return []

    def is_folder(self, entry: "os.DirEntry[str]") -> bool:
        """Whether an entry is a folder to be listed; to be asked once."""
        try:
            if not entry.is_dir() or (entry.is_symlink() and self._has_own_name(entry.path)):
                return False
            return (not self._outside and not entry.is_symlink()) or self._is_new(entry.stat())
        except OSError:  # a link to itself, or gone by now
            return False

    def _has_own_name(self, path: str) -> bool:
        """Whether what a path leads to is listed without any link."""
        parts = os.path.relpath(os.path.realpath(path), self._top).split("/")
        return parts[0] != ".." and not any(_is_hidden(part) for part in parts)

    def _is_new(self, state: os.stat_result) -> bool:
        identity = state.st_dev, state.st_ino
        is_new = identity not in self._outside
        self._outside.add(identity)
        return is_new


def _scanned(folder: str) -> "list[os.DirEntry[str]]":
    """The entries of a folder without hidden ones, by name.

    Raises:
        StorageError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as scan:
            return sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise StorageError(f"images: cannot list {folder!r}: {error.strerror}") from error


def _local_entries(part: Part) -> Iterator[Entries]:
    if part.kind == "file":
        yield Entries([uri_of(storage.absolute(part.path))], sizes=[None])
        return
    pattern = re.compile(part.pattern, re.DOTALL) if part.pattern is not None else None
    uris: list[str] = []
    sizes: list[int | None] = []
    others = 0
    shards: list[Part] = []
    for path, size in _listed(part.path, part.recursive, _Walk(part.root, part.path)):
        if pattern is not None and not pattern.fullmatch(os.path.relpath(path, part.root)):
            continue
        if size is not None and (kind := _shard_kind(path, part)) is not None:
            shards.append(Part(kind, path, root=os.path.dirname(path)))
            continue
        if size is not None and not path.lower().endswith(IMAGE_EXTENSIONS):
            others += 1
            continue
        uris.append(uri_of(path))
        sizes.append(size)
        if len(uris) == BATCH_ROWS:
            yield Entries(uris, sizes=sizes, others=others)
            uris, sizes, others = [], [], 0
    yield Entries(uris, sizes=sizes, others=others, left=tuple(shards))


def _listed(folder: str, recursive: bool, walk: _Walk) -> Iterator[tuple[str, int | None]]:
    """Path and size of the files below a folder, without hidden ones. A folder that cannot be listed comes itself,
    without a size: its images are not to be left out without a word."""
    try:
        entries = _scanned(folder)
    except StorageError:
        if os.path.isdir(folder):  # not gone by now
            yield folder, None
        return
    for entry in entries:
        if recursive and walk.is_folder(entry):
            yield from _listed(entry.path, True, walk)
            continue
        try:
            if not entry.is_file():  # a folder, a pipe, a link that leads nowhere
                continue
            size = entry.stat().st_size
        except OSError:  # a link to itself, or gone by now
            continue
        yield entry.path, size


def _key_entries(part: Part) -> Iterator[Entries]:
    assert part.keys is not None
    for page in s3_listing.pages(part.keys):
        some = _images_of(page.objects, part)
        left = () if page.left is None else (replace(part, keys=page.left),)
        yield replace(some, left=(*some.left, *left))


def _object_entries(part: Part) -> Iterator[Entries]:
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
    seen = [entry for entry, name in names if not _is_hidden(name) and (not pattern or pattern.fullmatch(name))]
    files = [(_shard_kind(entry.key, part) if scheme == "s3" else None, entry) for entry in seen]
    shards = [(kind, entry) for kind, entry in files if kind is not None and is_path(entry.key)]
    odd = [
        entry for kind, entry in files if kind is not None and not is_path(entry.key)
    ]  # Arrow cannot open them: each is a row that says so
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


def _shard_kind(name: str, part: Part) -> Literal["tar", "parquet"] | None:
    """Whether a file holds images. Parquet files, which may be anything, are opened where a pattern asks for them."""
    if name.lower().endswith(TAR_EXTENSION):
        return "tar"
    asks = part.pattern is not None and part.pattern.lower().endswith(re.escape(PARQUET_EXTENSION))
    return "parquet" if asks and name.lower().endswith(PARQUET_EXTENSION) else None


def _is_hidden(name: str) -> bool:
    """Whether a part of a name begins with a dot; `.` and `..`, which S3's keys may hold, hide nothing."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
