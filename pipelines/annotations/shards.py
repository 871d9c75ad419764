"""A folder of Parquet shards of annotations (`maskrcnn_core.data.coco.shard_columns`), wherever it lies."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from maskrcnn_core.data.coco.column_schema import IMAGES
from maskrcnn_core.data.coco.columns import AnnotationColumns
from maskrcnn_core.data.coco.conversion import Reader
from maskrcnn_core.data.coco.json_text import parse_json
from maskrcnn_core.data.coco.shard_columns import OBJECT_COLUMNS, OPTIONAL_COLUMNS, columns_of_shards
from maskrcnn_core.errors import AnnotationError
from pipelines import storage

CATEGORIES_FILE = "categories.json"
_ROWS_AT_ONCE = 1 << 16
_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatch)


def read_shards(uri: str, reader: Reader, *, digest: str, folder: Path | None) -> AnnotationColumns:
    """The columns of a folder of shards. Arguments as `columns_of_shards`.

    Raises:
        AnnotationError: the annotations are wrong; without the folder's name.
        StorageError: a file cannot be read.
    """
    return columns_of_shards(
        _categories(uri), _images(uri), _objects(uri), reader, source=uri, digest=digest, folder=folder
    )


def shards_digest(uri: str) -> str:
    """SHA-256 of the categories and of the names, sizes and footers of all shards, 64 hexadecimal digits.

    A footer states the rows, and of each column the bytes and the least and largest value; the values themselves,
    which may be a hundred gigabytes, are not read for it.

    Raises:
        StorageError: a file cannot be read.
    """
    digest = hashlib.sha256(storage.read_bytes(storage.join(uri, CATEGORIES_FILE)))
    for kind in ("images", "objects"):
        for file in _files(uri, kind):
            digest.update(f"{kind}/{file.rsplit('/', 1)[-1]}".encode("utf-8", "surrogateescape"))
            with _opened(file) as parquet:
                digest.update(_footer(parquet))
    return digest.hexdigest()


def _categories(uri: str) -> list[Any]:
    categories = parse_json(storage.read_bytes(storage.join(uri, CATEGORIES_FILE)))
    if not isinstance(categories, list):
        raise AnnotationError(
            f"{CATEGORIES_FILE}: got a {type(categories).__name__}, expected COCO's list of categories"
        )
    return categories


def _images(uri: str) -> Iterator[pa.Table]:
    for file in _files(uri, "images"):
        with _opened(file) as parquet:
            yield _sound(parquet.read([name for name in parquet.schema_arrow.names if name in IMAGES.names]))


def _objects(uri: str) -> Iterator[pa.RecordBatch]:
    for file in _files(uri, "objects"):
        with _opened(file) as parquet:
            wanted = [name for name in parquet.schema_arrow.names if name in OBJECT_COLUMNS + OPTIONAL_COLUMNS]
            yield from map(_sound, parquet.iter_batches(_ROWS_AT_ONCE, columns=wanted))


def _sound(rows: _Rows) -> _Rows:
    """Offsets and text that a damaged file may have are looked at before anybody follows them."""
    rows.validate(full=True)
    return rows


def _footer(parquet: pq.ParquetFile) -> bytes:
    metadata = parquet.metadata
    return f"{metadata.num_rows} {metadata.serialized_size} {metadata.to_dict()}".encode()


@contextmanager
def _opened(file: str) -> Iterator[pq.ParquetFile]:
    with storage.naming(file):
        try:
            filesystem, path = storage.filesystem_and_path(file)
            with filesystem.open_input_file(path) as stream:
                yield pq.ParquetFile(stream, pre_buffer=True)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            told = " ".join(str(error).split())
            raise AnnotationError(f"{file}: cannot be read ({told}); expected a Parquet file") from None


def _files(uri: str, kind: str) -> list[str]:
    folder = storage.join(uri, kind)
    files = sorted(storage.list_files(folder, ".parquet")) if storage.is_folder(folder) else []
    if not files:
        raise AnnotationError(
            f"no {kind}/*.parquet in it; expected a folder with {CATEGORIES_FILE}, images/*.parquet and "
            "objects/*.parquet, or a COCO file"
        )
    return files
