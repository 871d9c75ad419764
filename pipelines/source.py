"""What `--images` may name, seen as parts that can be listed independently of each other.

A folder becomes its sub-folders, an S3 prefix its sub-prefixes or key ranges, an S3 inventory its files; a COCO json or
a table of uris is one part. `entries` lists one part, some thousands of images at a time, so that no process ever holds
all names.
"""

import hashlib
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs

from maskrcnn_core.errors import ConfigError, StorageError
from pipelines import s3_listing, storage
from pipelines.source_parts import BATCH_ROWS, IMAGE_EXTENSIONS, Entries, Kind, Part
from pipelines.source_tables import (
    coco_entries,
    csv_entries,
    find_image_root,
    inventory_parquet_entries,
    inventory_parts,
    is_inventory,
    parquet_entries,
)

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
            inventory's manifest.json, a .parquet or .csv with a `uri` column. Local or s3://.
        image_root: folder that the file names of a COCO json are relative to; None looks beside the json.

    Raises:
        StorageError: nothing is there, or it is nothing of the kind.
        AnnotationError: a COCO json or an inventory is malformed.
        ConfigError: `image_root` is given where it has no meaning.
    """
    kind = _kind(images)
    if image_root is not None and kind != "coco":
        raise ConfigError(f"image_root: only has a meaning with a COCO json, but images is {images!r}; drop it")
    absolute = storage.absolute(images)
    if kind == "coco":
        parts: tuple[Part, ...] = (Part(kind, images, root=find_image_root(images, image_root)),)
    elif kind == "inventory":
        parts = inventory_parts(images)
    elif kind in ("parquet", "csv", "file"):
        parts = (Part(kind, images, root=posixpath.dirname(images) or "."),)
    else:
        root, pattern = _split_glob(images) if kind == "glob" else (images, None)
        parts = _folder_parts(kind, root, pattern, images)
    return Source(absolute, kind, parts, source_stamp(absolute, kind))


def source_stamp(images: str, kind: Kind) -> str:
    """Changes when the source does; see `Source`. Costs a look at each folder of a local one, nothing on S3."""
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
        digest.update(f"{os.path.relpath(folder, top)}\t{os.stat(folder).st_mtime_ns}\n".encode())
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
        yield from csv_entries(part) if not part.place.endswith(".parquet") else inventory_parquet_entries(part)
    elif part.keys is not None:
        yield from _key_entries(part)
    else:
        yield from _local_entries(part)


# ---- what a name stands for ------------------------------------------------------------------------------------------


def _kind(images: str) -> Kind:
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
    raise StorageError(
        f"images: {images!r} is no image, COCO .json, S3 inventory, .parquet or .csv; "
        "expected one of them, or a folder or glob of images"
    )


def _is_glob(text: str) -> bool:
    return any(character in text for character in "*?[")


def _split_glob(glob: str) -> tuple[str, str]:
    """The folder before the first wildcard, and what names below it must match."""
    parts = glob.split("/")
    first = next(index for index, part in enumerate(parts) if _is_glob(part))
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
            inner = token[1:-1].replace("\\", "\\\\")
            return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
        return re.escape(token)

    return re.sub(r"\*\*/|\*\*|\*|\?|\[!?[^\]/]+\]|[^*?\[]+|\[", translate, glob)


# ---- folders and prefixes --------------------------------------------------------------------------------------------


def _folder_parts(kind: Kind, root: str, pattern: str | None, images: str) -> tuple[Part, ...]:
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
    while len(deep) < _MOST_LOCAL_PARTS // 4:
        below = [(folder, _subfolders(folder)) for folder in deep]
        if not any(found for _, found in below):
            break
        shallow += [folder for folder, _ in below]
        deep = [found for _, children in below for found in children]
        if not deep:
            break
    return shallow, deep


def _subfolders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as found:
            return sorted(entry.path for entry in found if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise StorageError(f"images: cannot list {folder!r}: {error.strerror}") from error


def _local_entries(part: Part) -> Iterator[Entries]:
    if part.kind == "file":
        yield Entries([storage.absolute(part.place)], sizes=[None])
        return
    pattern = re.compile(part.pattern) if part.pattern is not None else None
    uris: list[str] = []
    sizes: list[int | None] = []
    others = 0
    for path, size in _walk(part.place, part.recursive):
        if pattern is not None and not pattern.fullmatch(os.path.relpath(path, part.root)):
            continue
        if not path.lower().endswith(IMAGE_EXTENSIONS):
            others += 1
            continue
        uris.append(path)
        sizes.append(size)
        if len(uris) == BATCH_ROWS:
            yield Entries(uris, sizes=sizes, others=others)
            uris, sizes, others = [], [], 0
    yield Entries(uris, sizes=sizes, others=others)


def _walk(folder: str, recursive: bool) -> Iterator[tuple[str, int]]:
    """Path and size of the files below a folder, without hidden ones."""
    try:
        with os.scandir(folder) as found:
            names = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise StorageError(f"images: cannot list {folder!r}: {error.strerror}") from error
    for entry in names:
        if entry.is_dir():
            if recursive:
                yield from _walk(entry.path, True)
        elif entry.is_file():  # not a link that leads nowhere
            yield entry.path, entry.stat().st_size


def _key_entries(part: Part) -> Iterator[Entries]:
    assert part.keys is not None
    pattern = re.compile(part.pattern) if part.pattern is not None else None
    root = part.root.removeprefix("s3://").rstrip("/").partition("/")[2]
    skip = len(root) + 1 if root else 0
    for page in s3_listing.objects(part.keys):
        names = [(found, found.key[skip:]) for found in page if not found.key.endswith("/")]
        seen = [found for found, name in names if not _is_hidden(name) and (not pattern or pattern.fullmatch(name))]
        images = [found for found in seen if found.key.lower().endswith(IMAGE_EXTENSIONS)]
        yield Entries(
            [f"s3://{part.keys.bucket}/{found.key}" for found in images],
            sizes=[found.size for found in images],
            etags=[found.etag for found in images],
            others=len(seen) - len(images),
        )


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
