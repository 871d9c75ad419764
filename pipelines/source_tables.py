"""Images that a file names: COCO json, Parquet and CSV with a column `uri`, S3 inventories."""

import csv
import gzip
import io
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.parquet as pq

from maskrcnn_core.data.coco_sections import read_images
from maskrcnn_core.data.json_text import parse_json
from maskrcnn_core.errors import AnnotationError, StorageError
from pipelines import storage
from pipelines.source_parts import BATCH_ROWS, IMAGE_EXTENSIONS, Entries, Part
from pipelines.split_names import names_below

# How many of a COCO file's images are looked for in each candidate folder before the next one is tried.
_ROOT_PROBES = 20


# ---- COCO ------------------------------------------------------------------------------------------------------------


def coco_entries(part: Part) -> Iterator[Entries]:
    """The images of a COCO json, with their ids.

    Raises:
        AnnotationError: the file is malformed.
    """
    images = _coco_images(part.place)
    names = names_below(part.root, [entry["file_name"] for entry in images])
    for start in range(0, len(images), BATCH_ROWS):
        some = images[start : start + BATCH_ROWS]
        yield Entries(
            [_absolute(part.root, name) for name in names[start : start + BATCH_ROWS]],
            ids=[entry["id"] for entry in some],
            widths=[entry.get("width") for entry in some],
            heights=[entry.get("height") for entry in some],
        )


def _read_json(images: str) -> Any:
    try:
        return parse_json(storage.read_bytes(images))
    except AnnotationError as error:
        raise AnnotationError(f"images: {images!r} is not valid JSON: {error}") from error


def _coco_images(images: str) -> list[dict[str, Any]]:
    content = _read_json(images)
    try:
        return read_images(content)
    except AnnotationError as error:
        raise AnnotationError(f"images: {images!r}: {error}") from None


def find_image_root(images: str, image_root: str | None) -> str:
    """The folder that a COCO json's file names are relative to."""
    names = [entry["file_name"] for entry in _coco_images(images)[:_ROOT_PROBES]]
    folder = posixpath.dirname(images) or "."
    parent = posixpath.dirname(folder) if folder not in (".", "..") else posixpath.join(folder, "..")
    parent = parent or "."
    beside = [folder, *(posixpath.join(place, "images") for place in (folder, parent)), parent]
    candidates = [image_root] if image_root is not None else beside
    for candidate in candidates:
        if any(storage.exists(storage.join(candidate, name)) for name in names_below(candidate, names)):
            return candidate
    raise StorageError(
        f"images: the files that {images!r} names, as {names[0]!r}, are in none of {', '.join(candidates)}; "
        "give their folder with --image_root"
    )


# ---- tables of uris --------------------------------------------------------------------------------------------------


def parquet_entries(part: Part) -> Iterator[Entries]:
    """The rows of a Parquet file with a column `uri`.

    Raises:
        AnnotationError: the file or a row is malformed.
    """
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


def csv_entries(part: Part) -> Iterator[Entries]:
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


def is_inventory(images: str) -> bool:
    """Whether a json is the manifest of an S3 inventory."""
    content = storage.read_bytes(images)
    return b'"fileSchema"' in content[:4096] and b'"files"' in content


def inventory_parts(images: str) -> tuple[Part, ...]:
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


def inventory_parquet_entries(part: Part) -> Iterator[Entries]:
    """The images of one Parquet file of an S3 inventory."""
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
