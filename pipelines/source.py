"""What `--images` may name, seen as parts that can be listed independently of each other.

A folder becomes its sub-folders, an S3 prefix its sub-prefixes or key ranges, an S3 inventory its files; a COCO json or
a table of uris is one part. `entries` lists one part, some thousands of images at a time, so that no process ever holds
all names.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from maskrcnn_core.errors import AnnotationError, ConfigError, StorageError
from pipelines import s3_listing, storage
from pipelines.s3_listing import KeyRange

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")

Kind = Literal["folder", "glob", "file", "coco", "parquet", "csv", "inventory"]

# Images that are handed on at once.
BATCH_ROWS = 10_000

# How many of a COCO file's images are looked for in each candidate folder before the next one is tried.
_ROOT_PROBES = 20

# Sub-folders of a local folder that are looked for before it is listed, to know how many tasks are worth it.
_MOST_LOCAL_PARTS = 256


@dataclass(frozen=True)
class Entries:
    """Some images of a source, column by column.

    Attributes:
        uris: absolute, or with a scheme.
        ids: given by the source; None = to be made from the uris.
        sizes: bytes; etags: as S3 gives them. None where the source does not say.
        widths, heights: pixels, where the source says.
        others: names that were seen and are no images.
    """

    uris: list[str]
    ids: list[int] | None = None
    sizes: list[int | None] | None = None
    etags: list[str | None] | None = None
    widths: list[int | None] | None = None
    heights: list[int | None] | None = None
    others: int = 0


@dataclass(frozen=True)
class Part:
    """What one task lists.

    Attributes:
        kind: of the source.
        place: folder, file or data file of an inventory.
        recursive: folders: with everything below.
        pattern: globs: what names relative to `root` must match.
        root: folder that relative names belong to.
        keys: a range of S3 keys instead of `place`.
        columns: of an inventory's headerless CSV.
    """

    kind: Kind
    place: str
    recursive: bool = True
    pattern: str | None = None
    root: str = ""
    keys: KeyRange | None = None
    columns: tuple[str, ...] = ()


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
        parts: tuple[Part, ...] = (Part(kind, images, root=_image_root(images, image_root)),)
    elif kind == "inventory":
        parts = _inventory_parts(images)
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
        yield from _coco_entries(part)
    elif part.kind == "parquet":
        yield from _parquet_entries(part)
    elif part.kind in ("csv", "inventory"):
        yield from _csv_entries(part) if not part.place.endswith(".parquet") else _inventory_parquet(part)
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
        return "inventory" if _is_inventory(images) else "coco"
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


# ---- COCO ------------------------------------------------------------------------------------------------------------


def _coco_entries(part: Part) -> Iterator[Entries]:
    images = _coco_images(part.place)
    for start in range(0, len(images), BATCH_ROWS):
        some = images[start : start + BATCH_ROWS]
        yield Entries(
            [_absolute(part.root, entry["file_name"]) for entry in some],
            ids=[entry["id"] for entry in some],
            widths=[entry.get("width") for entry in some],
            heights=[entry.get("height") for entry in some],
        )


def _read_json(images: str) -> Any:
    try:
        return json.loads(storage.read_bytes(images))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AnnotationError(f"images: {images!r} is not valid JSON: {error}") from error


def _coco_images(images: str) -> list[dict[str, Any]]:
    content = _read_json(images)
    found = content.get("images") if isinstance(content, dict) else None
    if not isinstance(found, list) or not found:
        raise AnnotationError(f'images: {images!r} has no entries in "images"; expected a COCO json')
    for index, entry in enumerate(found):
        wrong = not isinstance(entry, dict) or not isinstance(entry.get("id"), int) or not entry.get("file_name")
        if wrong or not isinstance(entry["file_name"], str):
            raise AnnotationError(
                f"images: {images!r}, entry images[{index}] is {str(entry)[:120]}; "
                "expected an integer id and a file_name"
            )
    return found


def _image_root(images: str, image_root: str | None) -> str:
    """The folder that a COCO json's file names are relative to."""
    names = [entry["file_name"] for entry in _coco_images(images)[:_ROOT_PROBES]]
    folder = posixpath.dirname(images) or "."
    parent = posixpath.dirname(folder) if folder not in (".", "..") else posixpath.join(folder, "..")
    parent = parent or "."
    beside = [folder, *(posixpath.join(place, "images") for place in (folder, parent)), parent]
    candidates = [image_root] if image_root is not None else beside
    for candidate in candidates:
        if any(storage.exists(storage.join(candidate, name)) for name in names):
            return candidate
    raise StorageError(
        f"images: the files that {images!r} names, as {names[0]!r}, are in none of {', '.join(candidates)}; "
        "give their folder with --image_root"
    )


# ---- tables of uris --------------------------------------------------------------------------------------------------


def _parquet_entries(part: Part) -> Iterator[Entries]:
    images = part.place
    filesystem, path = storage.filesystem_and_path(images)
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            names = file.schema_arrow.names
            if "uri" not in names:
                raise AnnotationError(f"images: the manifest {images!r} has columns {names}; expected `uri`")
            if file.metadata.num_rows == 0:
                raise AnnotationError(f"images: the manifest {images!r} has no rows; expected one for each image")
            known = [name for name in ("image_id", "uri", "size", "etag", "width", "height") if name in names]
            for batch in file.iter_batches(BATCH_ROWS, columns=known):
                yield _table_entries(part, {name: batch.column(name).to_pylist() for name in known})
    except (pa.ArrowInvalid, OSError) as error:
        raise AnnotationError(f"images: cannot read the manifest {images!r}: {error}") from error


def _table_entries(part: Part, columns: dict[str, list[Any]]) -> Entries:
    uris = columns["uri"]
    if not all(isinstance(uri, str) and uri for uri in uris):
        raise AnnotationError(f"images: the manifest {part.place!r} has rows whose uri is no text")
    ids = columns.get("image_id")
    if ids is not None and not all(isinstance(image_id, int) for image_id in ids):
        raise AnnotationError(f"images: the manifest {part.place!r} has an image_id that is no integer; expected int64")
    return Entries(
        [_absolute(part.root, uri) for uri in uris],
        ids=ids,
        sizes=columns.get("size"),
        etags=columns.get("etag"),
        widths=columns.get("width"),
        heights=columns.get("height"),
    )


def _csv_entries(part: Part) -> Iterator[Entries]:
    """A CSV with a header that names a column `uri`, or a data file of an S3 inventory, which has none."""
    content = storage.read_bytes(part.place)
    text = io.StringIO((gzip.decompress(content) if part.place.endswith(".gz") else content).decode())
    if part.kind == "inventory":
        rows = ({name: value for name, value in zip(part.columns, row, strict=False)} for row in csv.reader(text))
        for some in _batches(rows):
            yield _inventory_entries(some)
        return
    reader = csv.DictReader(text)
    if "uri" not in (reader.fieldnames or ()):
        raise AnnotationError(f"images: the first line of {part.place!r} is {reader.fieldnames}; expected a column uri")
    for some in _batches(reader):
        columns: dict[str, list[Any]] = {"uri": [row["uri"] for row in some]}
        for name in ("image_id", "size", "width", "height"):
            if name in (reader.fieldnames or ()):
                columns[name] = [_whole(row[name], part.place, name) for row in some]
        yield _table_entries(part, columns)


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    some: list[dict[str, Any]] = []
    for row in rows:
        some.append(row)
        if len(some) == BATCH_ROWS:
            yield some
            some = []
    if some:
        yield some


def _whole(text: str | None, place: str, name: str) -> int | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise AnnotationError(f"images: {place!r} has a {name} {text!r}; expected a whole number") from None


def _is_inventory(images: str) -> bool:
    content = storage.read_bytes(images)
    return b'"fileSchema"' in content[:4096] and b'"files"' in content


def _inventory_parts(images: str) -> tuple[Part, ...]:
    """The data files that an S3 inventory's manifest.json names (Amazon S3 User Guide, "Locating your inventory")."""
    document = _read_json(images)
    try:
        bucket = str(document["destinationBucket"]).rpartition(":")[2]
        columns = tuple(name.strip() for name in str(document["fileSchema"]).split(","))
        keys = [str(file["key"]) for file in document["files"]]
        form = str(document["fileFormat"])
    except (KeyError, TypeError) as error:
        raise AnnotationError(f"images: the inventory {images!r} lacks {error}; expected S3's manifest.json") from error
    if form not in ("CSV", "Parquet"):
        raise AnnotationError(f"images: the inventory {images!r} has the format {form}; expected CSV or Parquet")
    return tuple(Part("inventory", f"s3://{bucket}/{key}", columns=columns) for key in keys)


def _inventory_parquet(part: Part) -> Iterator[Entries]:
    filesystem, path = storage.filesystem_and_path(part.place)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        wanted = {"bucket": "Bucket", "key": "Key", "size": "Size", "e_tag": "ETag", "is_latest": "IsLatest"}
        known = [name for name in wanted if name in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH_ROWS, columns=known):
            rows = batch.to_pylist()
            yield _inventory_entries([{wanted[name]: value for name, value in row.items()} for row in rows], False)


def _inventory_entries(rows: Sequence[dict[str, Any]], quoted: bool = True) -> Entries:
    """Keys of CSV inventories are URL-encoded, those of Parquet are not. Old versions are left out."""
    uris, sizes, etags, others = [], [], [], 0
    for row in rows:
        if str(row.get("IsLatest", "true")).lower() == "false" or str(row.get("IsDeleteMarker")).lower() == "true":
            continue
        key = unquote_plus(row["Key"]) if quoted else row["Key"]
        if not key.lower().endswith(IMAGE_EXTENSIONS):
            others += 1
            continue
        uris.append(f"s3://{row['Bucket']}/{key}")
        sizes.append(int(row["Size"]) if row.get("Size") else None)
        etags.append(row.get("ETag") or None)
    return Entries(uris, sizes=sizes, etags=etags, others=others)


def _absolute(folder: str, name: str) -> str:
    """`name` below `folder`, so that every process finds it whatever folder it runs in."""
    if "://" in name:
        return name
    uri = name if name.startswith("/") else storage.join(folder, name)
    return uri if "://" in uri else str(storage.filesystem_and_path(uri)[1])
