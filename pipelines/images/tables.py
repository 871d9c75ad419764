"""Images that a file names: COCO json, Parquet and CSV with a column `uri`, S3 inventories. (Parquet files with the
images themselves are opened here too; see `parquet_images`.)"""

import csv
import gzip
import io
import posixpath
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO
from urllib.parse import unquote, unquote_plus

import pyarrow as pa
import pyarrow.parquet as pq

from maskrcnn_core.data.coco.json_text import parse_json
from maskrcnn_core.data.coco.sections import read_images
from maskrcnn_core.data.files import has_scheme, located, uri_of
from maskrcnn_core.errors import AnnotationError, StorageError
from pipelines import storage
from pipelines.images.parquet_images import image_column, image_rows
from pipelines.images.parts import BATCH_ROWS, IMAGE_EXTENSIONS, Entries, Part
from pipelines.images.split_names import file_names
from pipelines.storage.object_stores import is_beside_s3, object_exists

# How many of a COCO file's images, spread over it, are looked for in each candidate folder before the next is tried.
_ROOT_PROBES = 20


# ---- COCO ------------------------------------------------------------------------------------------------------------


def coco_entries(part: Part) -> Iterator[Entries]:
    """The images of a COCO json, with their ids.

    Raises:
        AnnotationError: the file is malformed.
    """
    images = _coco_images(part.path)
    names = file_names(part.root, images)
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
        raise AnnotationError(
            f"images: {images!r} is not valid JSON: {str(error).removeprefix('not JSON ')}"
        ) from error


def _coco_images(images: str) -> list[dict[str, Any]]:
    content = _read_json(images)
    try:
        return read_images(content)
    except AnnotationError as error:
        raise AnnotationError(f"images: {images!r}: {error}") from None


def find_image_root(images: str, image_root: str | None) -> str:
    """The folder that a COCO json's file names are relative to."""
    entries = _coco_images(images)
    entries = entries[:: max(1, len(entries) // _ROOT_PROBES)][:_ROOT_PROBES]
    names = [entry["file_name"] for entry in entries]
    folder = posixpath.dirname(images) or "."
    parent = posixpath.dirname(folder) if folder not in (".", "..") else posixpath.join(folder, "..")
    parent = parent or "."
    beside = [folder, *(posixpath.join(base, "images") for base in (folder, parent)), parent]
    candidates = [image_root] if image_root is not None else beside
    for candidate in candidates:
        if any(_is_there(candidate, name) for name in file_names(candidate, entries)):
            return candidate
    if all(has_scheme(name) or name.startswith("/") for name in names):
        raise StorageError(
            f"images: {images!r} names {names[0]!r} and others by where they lie, expected files that are there, "
            "absolute or with file://, s3://, gs:// or az://; correct the names, or make them relative and give "
            "--image_root"
        )
    raise StorageError(
        f"images: the files that {images!r} names, as {names[0]!r}, are in none of {', '.join(candidates)}; "
        f"{_other_spelling(candidates, names) or 'give their folder with --image_root'}"
    )


def _is_there(folder: str, name: str) -> bool:
    """Whether there is a file of this name; what cannot be one, as http://, is not there."""
    try:
        path = _absolute(folder, name)
        return object_exists(path) if is_beside_s3(path) else storage.exists(path)
    except StorageError as error:
        is_unreachable = isinstance(error.__cause__, OSError)  # else the name is one that no path can have
        if not is_unreachable or not has_scheme(folder) or has_scheme(name):
            return False
        raise  # the folder cannot be reached, whatever the name


def _other_spelling(folders: Sequence[str], names: Sequence[str]) -> str:
    """How to mend names that other systems have spelled their way."""
    for what, spelled in (
        ("backslashes where the files have /", lambda name: name.replace("\\", "/")),
        ("%-codes where the files have the characters", unquote),
        ("folders that the files do not lie in any more", lambda name: re.split(r"[\\/]", name)[-1]),
    ):
        changed = [(spelled(name), name) for name in names if spelled(name) != name]
        if (path := next((_absolute(f, n) for f in folders for n, _ in changed if _is_there(f, n)), None)) is not None:
            return f"the names have {what}, as {path!r}: correct the names"
    return ""


# ---- tables of uris --------------------------------------------------------------------------------------------------


def parquet_entries(part: Part) -> Iterator[Entries]:
    """The rows of a Parquet file with a column `uri`, or with the images themselves.

    Raises:
        AnnotationError: the file or a row is malformed.
    """
    images = part.path
    filesystem, path = storage.filesystem_and_path(images)
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            names = file.schema_arrow.names
            column = None if "uri" in names else image_column(file.schema_arrow)
            if "uri" not in names and column is None:
                raise AnnotationError(
                    f"images: {images!r} has columns {names}; expected `uri`, or `image` with the bytes of image files"
                )
            if file.metadata.num_rows == 0:
                raise AnnotationError(f"images: the manifest {images!r} has no rows; expected one for each image")
            if column is not None:
                yield from image_rows(part, file, column)
                return
            known = [name for name in ("image_id", "uri", "size", "etag", "width", "height") if name in names]
            first = 1
            for batch in file.iter_batches(BATCH_ROWS, columns=known):
                yield _table_entries(part, {name: batch.column(name).to_pylist() for name in known}, first)
                first += len(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"images: cannot read the manifest {images!r}: {error}") from error


def _table_entries(part: Part, columns: dict[str, list[Any]], first: int) -> Entries:
    """Rows from number `first` on."""
    uris = columns.pop("uri")
    for row, uri in enumerate(uris, first):
        if not isinstance(uri, str) or not uri:
            raise AnnotationError(
                f"images: {part.path!r}, row {row}: uri is {str(uri)[:60]!r}, expected text; correct or remove the row"
            )
    whole = {
        name: [_whole(value, part.path, first + row, name) for row, value in enumerate(values)]
        for name, values in columns.items()
        if name != "etag"
    }
    ids = whole.get("image_id")
    if ids is not None and None in ids:
        raise AnnotationError(
            f"images: {part.path!r}, row {first + ids.index(None)}: no image_id, expected a whole number in each row, "
            "or no such column"
        )
    return Entries(
        [_absolute(part.root, uri) for uri in uris],
        ids=ids,  # type: ignore[arg-type]
        sizes=whole.get("size"),
        etags=columns.get("etag"),
        widths=whole.get("width"),
        heights=whole.get("height"),
    )


def csv_entries(part: Part) -> Iterator[Entries]:
    """A CSV with a header that names a column `uri`, or a data file of an S3 inventory, which has none.

    Raises:
        AnnotationError: the file or a row is malformed.
    """
    try:
        yield from _csv_entries(part, _text(storage.read_bytes(part.path)))
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f"images: {part.path!r} is not UTF-8: byte 0x{error.object[error.start]:02x} is no part of a character; "
            "save it as UTF-8"
        ) from None
    except csv.Error as error:
        raise AnnotationError(f"images: {part.path!r} is no CSV: {error}; is a quote not closed?") from None
    except (OSError, EOFError, zlib.error) as error:
        raise AnnotationError(f"images: {part.path!r} cannot be unpacked: {error}") from None


def _text(content: bytes) -> TextIO:
    """The text of a file, unpacked as it is read, with the byte order mark that Excel and others write in front."""
    packed = content.startswith(b"\x1f\x8b")
    raw: Any = gzip.GzipFile(fileobj=io.BytesIO(content)) if packed else io.BytesIO(content)
    start = raw.read(2)
    raw.seek(0)
    return io.TextIOWrapper(raw, "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", newline="")


def _csv_entries(part: Part, text: TextIO) -> Iterator[Entries]:
    if part.kind == "inventory":
        rows = ({name: value for name, value in zip(part.columns, row, strict=False)} for row in csv.reader(text))
        for some in _batches(rows):
            yield _inventory_entries(some)
        return
    reader = csv.DictReader(text)
    names = reader.fieldnames or ()
    if "uri" not in names:
        raise AnnotationError(
            f"images: the first line of {part.path!r} is {str(list(names))[:120]}; expected a column uri, and commas "
            "between columns"
        )
    first = 1
    for some in _batches(reader):
        known = [name for name in ("uri", "image_id", "size", "width", "height") if name in names]
        yield _table_entries(part, {name: [row[name] for row in some] for name in known}, first)
        first += len(some)


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    some: list[dict[str, Any]] = []
    for row in rows:
        some.append(row)
        if len(some) == BATCH_ROWS:
            yield some
            some = []
    if some:
        yield some


def _whole(value: Any, path: str, row: int, name: str) -> int | None:
    """A whole number that a table holds as one, as text or as 7.0; None where it holds nothing."""
    if value is None or value == "" or value != value:  # not a number: how pandas writes nothing
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        number = float(value) if not isinstance(value, str) or "." in value else int(value)
        if not isinstance(value, bool) and number == int(number):
            return int(number)
    except (ValueError, TypeError, OverflowError):
        pass
    raise AnnotationError(f"images: {path!r}, row {row}: {name} is {str(value)[:40]!r}, expected a whole number")


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
    filesystem, path = storage.filesystem_and_path(part.path)
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
    """Where the file lies that a table or a COCO json names, so that every process finds it whatever folder it runs
    in; as text that a record can hold."""
    path = located(folder, name)
    return uri_of(path if has_scheme(path) or "\0" in path else str(storage.filesystem_and_path(path)[1]))
