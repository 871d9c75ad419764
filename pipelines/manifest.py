"""Which images a run is about: anything that `--images` may name, as one sorted table with a unique id for each."""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from maskrcnn_core.errors import AnnotationError, ConfigError, StorageError
from pipelines import storage

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
)

Source = Literal["folder", "glob", "file", "coco", "parquet"]

# How many of a COCO file's images are looked for in each candidate folder before the next one is tried.
_ROOT_PROBES = 20


@dataclass(frozen=True)
class Manifest:
    """The images of a run.

    Attributes:
        table: `MANIFEST_SCHEMA`, image_id unique. Width and height where the source told them.
        source: what `images` turned out to be.
        digest: hex digest of all ids and uris in order; equal digests mean the same images.
    """

    table: pa.Table
    source: Source
    digest: str

    def __len__(self) -> int:
        return int(self.table.num_rows)


def build_manifest(images: str, image_root: str | None = None) -> Manifest:
    """Lists the images that a setting `images` names.

    Args:
        images: a folder (searched recursively), a glob (`**` crosses folders), one image, a COCO json, or a .parquet
            with a `uri` column and optionally `image_id`, `width`, `height`. Local or s3://.
        image_root: folder that the file names of a COCO json are relative to; None looks beside the json.

    Raises:
        StorageError: nothing is there, or nothing in it is an image.
        AnnotationError: the COCO json or the Parquet manifest is malformed.
        ConfigError: `image_root` is given where it has no meaning.
    """
    source = _source(images)
    if image_root is not None and source != "coco":
        raise ConfigError(f"image_root: only has a meaning with a COCO json, but images is {images!r}; drop it")
    if source == "coco":
        table = _from_coco(images, image_root)
    elif source == "parquet":
        table = _from_parquet(images)
    else:
        table = _from_listing(images, source)
    return Manifest(table, source, _digest(table))


def stable_image_id(name: str) -> int:
    """63-bit id of a name: the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def _source(images: str) -> Source:
    filesystem, path = storage.filesystem_and_path(images)
    info = filesystem.get_file_info(path)
    if info.type == pa.fs.FileType.Directory:
        return "folder"
    if info.type == pa.fs.FileType.NotFound:
        if _is_glob(images):
            return "glob"
        raise StorageError(f"images: no file or folder {images!r}; expected a folder, glob, COCO json or .parquet")
    extension = posixpath.splitext(path)[1].lower()
    if extension in IMAGE_EXTENSIONS:
        return "file"
    if extension == ".json":
        return "coco"
    if extension == ".parquet":
        return "parquet"
    raise StorageError(
        f"images: {images!r} is no image, COCO .json or manifest .parquet; "
        "expected one of them, or a folder or glob of images"
    )


def _is_glob(text: str) -> bool:
    return any(character in text for character in "*?[")


def _from_listing(images: str, source: Source) -> pa.Table:
    root, pattern = images, None
    if source == "glob":
        root, pattern = _split_glob(images)
    elif source == "file":
        root, name = posixpath.split(images)
        root, pattern = root or ".", re.compile(re.escape(name))
    files = [posixpath.basename(images)] if source == "file" else _walk(root, images)
    matching = [name for name in files if pattern is None or pattern.fullmatch(name)]
    chosen = sorted(name for name in matching if name.lower().endswith(IMAGE_EXTENSIONS))
    if not chosen:
        seen = f"{len(matching)} other files" if matching else ("no match" if pattern else "it is empty")
        raise StorageError(
            f"images: no images in {images!r} ({seen}); expected files with {', '.join(IMAGE_EXTENSIONS)}"
        )
    ids = [stable_image_id(name) for name in chosen]
    return _table(images, ids, [_absolute(root, name) for name in chosen])


def _walk(root: str, images: str) -> list[str]:
    """Names of all files below `root`, relative to it, without hidden ones."""
    filesystem, path = storage.filesystem_and_path(root)
    try:
        found = filesystem.get_file_info(pa.fs.FileSelector(path, recursive=True))
    except FileNotFoundError:
        raise StorageError(f"images: no folder {root!r} (from {images!r}); check the path") from None
    except OSError as error:
        raise StorageError(f"images: cannot list {root!r}: {error}") from error
    prefix = len(path.rstrip("/")) + 1
    names = (info.path[prefix:] for info in found if info.type == pa.fs.FileType.File)
    return [name for name in names if not any(part.startswith(".") for part in name.split("/"))]


def _split_glob(glob: str) -> tuple[str, re.Pattern[str]]:
    """The folder before the first wildcard, and what names below it must match."""
    parts = glob.split("/")
    first = next(index for index, part in enumerate(parts) if _is_glob(part))
    root = "/".join(parts[:first]) or ("/" if glob.startswith("/") else ".")
    return root, re.compile(_glob_regex("/".join(parts[first:])))


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


def _from_coco(images: str, image_root: str | None) -> pa.Table:
    entries = _coco_images(images)
    names = [entry["file_name"] for entry in entries]
    root = _image_root(images, names, image_root)
    sizes = [(entry.get("width"), entry.get("height")) for entry in entries]
    ids = [entry["id"] for entry in entries]
    return _table(images, ids, [_absolute(root, name) for name in names], sizes)


def _coco_images(images: str) -> list[dict[str, Any]]:
    try:
        content = json.loads(storage.read_bytes(images))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AnnotationError(f"images: {images!r} is not valid JSON: {error}") from error
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise AnnotationError(f'images: {images!r} has no entries in "images"; expected a COCO json')
    for index, entry in enumerate(entries):
        wrong = not isinstance(entry, dict) or not isinstance(entry.get("id"), int) or not entry.get("file_name")
        if wrong or not isinstance(entry["file_name"], str):
            raise AnnotationError(
                f"images: {images!r}, entry images[{index}] is {str(entry)[:120]}; "
                "expected an integer id and a file_name"
            )
    return sorted(entries, key=lambda entry: entry["id"])


def _image_root(images: str, names: Sequence[str], image_root: str | None) -> str:
    """The folder that a COCO json's file names are relative to."""
    folder = posixpath.dirname(images) or "."
    parent = posixpath.dirname(folder) if folder not in (".", "..") else posixpath.join(folder, "..")
    parent = parent or "."
    beside = [folder, *(posixpath.join(place, "images") for place in (folder, parent)), parent]
    candidates = [image_root] if image_root is not None else beside
    for candidate in candidates:
        if any(storage.exists(storage.join(candidate, name)) for name in names[:_ROOT_PROBES]):
            return candidate
    raise StorageError(
        f"images: the files that {images!r} names, as {names[0]!r}, are in none of {', '.join(candidates)}; "
        "give their folder with --image_root"
    )


def _from_parquet(images: str) -> pa.Table:
    filesystem, path = storage.filesystem_and_path(images)
    try:
        schema = pq.read_schema(path, filesystem=filesystem)
        known = [name for name in MANIFEST_SCHEMA.names if name in schema.names]
        table = pq.read_table(path, filesystem=filesystem, columns=known)
    except (pa.ArrowInvalid, OSError) as error:
        raise AnnotationError(f"images: cannot read the manifest {images!r}: {error}") from error
    if "uri" not in known:
        raise AnnotationError(f"images: the manifest {images!r} has columns {schema.names}; expected `uri`")
    uris = table.column("uri").to_pylist()
    if not uris or not all(isinstance(uri, str) and uri for uri in uris):
        raise AnnotationError(f"images: the manifest {images!r} has no rows, or rows whose uri is no text")
    ids = table.column("image_id").to_pylist() if "image_id" in known else [stable_image_id(uri) for uri in uris]
    if not all(isinstance(image_id, int) for image_id in ids):
        raise AnnotationError(f"images: the manifest {images!r} has an image_id that is no integer; expected int64")
    folder = posixpath.dirname(images) or "."
    sizes = None
    if "width" in known and "height" in known:
        sizes = list(zip(table.column("width").to_pylist(), table.column("height").to_pylist(), strict=True))
    rows = sorted(range(len(ids)), key=lambda row: ids[row])
    return _table(
        images,
        [ids[row] for row in rows],
        [_absolute(folder, uris[row]) for row in rows],
        None if sizes is None else [sizes[row] for row in rows],
    )


def _absolute(folder: str, name: str) -> str:
    """`name` below `folder`, so that every process finds it whatever folder it runs in."""
    if "://" in name:
        return name
    uri = name if name.startswith("/") else storage.join(folder, name)
    return uri if "://" in uri else _absolute_local(uri)


def _absolute_local(path: str) -> str:
    return str(storage.filesystem_and_path(path)[1])


def _table(
    images: str,
    ids: Sequence[int],
    uris: Sequence[str],
    sizes: Iterable[tuple[object, object]] | None = None,
) -> pa.Table:
    _require_unique(images, ids, uris)
    widths, heights = zip(*sizes, strict=True) if sizes is not None else ([None] * len(ids), [None] * len(ids))
    try:
        columns = [
            pa.array(values, field.type)
            for values, field in zip((ids, uris, widths, heights), MANIFEST_SCHEMA, strict=True)
        ]
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise AnnotationError(f"images: {images!r} has an id or size of the wrong type: {error}") from error
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def _require_unique(images: str, ids: Sequence[int], uris: Sequence[str]) -> None:
    first: dict[int, str] = {}
    for image_id, uri in zip(ids, uris, strict=True):
        if image_id in first:
            raise AnnotationError(
                f"images: {images!r} has image id {image_id} twice, for {first[image_id]!r} and {uri!r}; "
                "each image needs an id of its own (a manifest .parquet can set image_id)"
            )
        first[image_id] = uri


def _digest(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for batch in table.select(["image_id", "uri"]).to_batches(max_chunksize=10_000):
        rows = zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
        digest.update("".join(f"{image_id}\t{uri}\n" for image_id, uri in rows).encode())
    return digest.hexdigest()
