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
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs

from maskrcnn_core.errors import ConfigError, StorageError
from pipelines import storage
from pipelines.images.local_folders import local_entries, split_folder
from pipelines.images.object_listings import key_entries, object_entries
from pipelines.images.parts import IMAGE_EXTENSIONS, Entries, Kind, Part
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
from pipelines.storage.object_stores import is_beside_s3, is_prefix


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
        yield from key_entries(part)
    elif part.kind != "file" and is_beside_s3(part.path):
        yield from object_entries(part)
    else:
        yield from local_entries(part)


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
    shallow, deep = split_folder(top)
    parts = [Part(kind, folder, recursive=False, pattern=pattern, root=top) for folder in shallow]
    return tuple(parts + [Part(kind, folder, pattern=pattern, root=top) for folder in deep])
