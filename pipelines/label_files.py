"""The Parquet files of a label run, as scoring reads them: light columns at once, detections in batches."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from maskrcnn_core.data.proposal_schema import is_proposals_schema
from maskrcnn_core.errors import StorageError
from maskrcnn_core.inference.records import SCHEMA_VERSION
from pipelines import storage

LIGHT_COLUMNS = ("image_id", "width", "height", "status", "model")
_COLUMNS = (*LIGHT_COLUMNS, "detections")
_VERSION_KEY = b"maskrcnn.schema_version"


def label_files(uri: str) -> list[str]:
    """Parquet files of a label run's folder, of its `labels/` folder, or the one file itself.

    Raises:
        StorageError: there is none.
    """
    if not storage.exists(uri):
        raise StorageError(f"{uri}: no such file or folder; expected labels written by python -m jobs.label")
    if not storage.is_folder(uri):
        return [uri]
    inner = storage.join(uri, "labels")
    folder = inner if storage.is_folder(inner) else uri
    # Not from anywhere below: OUTPUT/_run holds Parquet files of another kind.
    files = [file for file in storage.list_files(folder, ".parquet") if "/_run/" not in file]
    if not files:
        raise StorageError(f"{folder}: no .parquet files; expected labels written by python -m jobs.label")
    return files


def read_labels(uri: str) -> pa.Table:
    """The columns of label records that scoring needs, from `label_files(uri)`.

    Raises:
        StorageError: a file is not Parquet, lacks a column, or has another version of the schema.
    """
    return pa.concat_tables([read_label_file(file)[0] for file in label_files(uri)])


def read_label_file(uri: str, columns: tuple[str, ...] = _COLUMNS) -> tuple[pa.Table, list[int]]:
    """Columns of all rows of a file, and the number of rows in each of its row groups.

    Raises:
        StorageError: it is not Parquet, lacks a column, or has another version of the schema.
    """
    try:
        with _open(uri) as file:
            _require_labels(uri, file.schema_arrow)
            groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
            return file.read(columns=list(columns)).replace_schema_metadata(None), groups
    except (OSError, pa.ArrowInvalid) as error:
        raise StorageError(f"{uri}: cannot be read as Parquet: {error}") from error


def read_label_batches(uri: str, row_groups: tuple[int, ...], rows_at_once: int) -> Iterator[pa.Table]:
    """Rows of some row groups with their detections, a few at a time.

    Raises:
        StorageError: the file cannot be read.
    """
    try:
        with _open(uri) as file:
            for batch in file.iter_batches(rows_at_once, list(row_groups), list(_COLUMNS)):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(None)
    except (OSError, pa.ArrowInvalid) as error:
        raise StorageError(f"{uri}: cannot be read as Parquet: {error}") from error


def _open(uri: str) -> pq.ParquetFile:
    filesystem, path = storage.filesystem_and_path(uri)
    return pq.ParquetFile(path, filesystem=filesystem)


def _require_labels(uri: str, schema: pa.Schema) -> None:
    if is_proposals_schema(schema):
        raise StorageError(
            f"{uri}: holds proposals, expected detections; label without --label.record proposals "
            "(jobs.evaluate scores proposals as well)"
        )
    missing = [name for name in _COLUMNS if name not in schema.names]
    if missing:
        raise StorageError(f"{uri}: not label records: column {missing[0]!r} is missing")
    version = (schema.metadata or {}).get(_VERSION_KEY, SCHEMA_VERSION.encode()).decode()
    if version != SCHEMA_VERSION:
        raise StorageError(f"{uri}: label schema version {version}; this release reads {SCHEMA_VERSION}")
