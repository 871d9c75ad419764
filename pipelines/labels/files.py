"""The Parquet files of a label run as everything but `jobs.verify` reads them: checked columns, a few rows at a time.

A file may be of another program: columns and types that say the same are taken for ours, and what a row holds is
checked (`inference.readable_rows`) before anybody works with it. A file or a row that cannot be read is one error that
names it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskrcnn_core.config.model import Category
from maskrcnn_core.errors import StorageError
from maskrcnn_core.records.labels import RECORD_FIELDS, require_version, schema_categories, with_category_ids
from maskrcnn_core.records.readable_rows import check_images, check_readable
from maskrcnn_core.records.row_findings import Findings
from maskrcnn_core.records.schema import PROPOSALS_TYPE, is_proposals_schema
from pipelines import storage
from pipelines.labels.parts import HERE, Readers

LIGHT_COLUMNS = ("image_id", "width", "height", "status", "model")
RECORD_COLUMNS = tuple(column.name for column in RECORD_FIELDS)
_SCORED_COLUMNS = (*LIGHT_COLUMNS, "detections")
_OPTIONAL_COLUMNS = ("error", "model")
_TYPES = {column.name: column.type for column in RECORD_FIELDS} | {"proposals": PROPOSALS_TYPE}
_EXACT_WRITER = "parquet-cpp-arrow"  # others may shorten the texts of their statistics
_ROWS_AT_ONCE = 256
_LIGHT_ROWS_AT_ONCE = 1 << 16


def label_files(uri: str) -> list[str]:
    """Parquet files of a label run's folder, of its `labels/` folder, or the one file itself.

    Raises:
        StorageError: there is none.
    """
    return list(label_file_sizes(uri))


def label_file_sizes(uri: str) -> dict[str, int]:
    """Bytes of each of the files of `label_files`, in their order; costs the same one listing."""
    if not storage.exists(uri):
        raise StorageError(f"{uri}: no such file or folder; expected labels written by python -m jobs.label")
    if not storage.is_folder(uri):
        return {uri: storage.size(uri)}
    inner = storage.join(uri, "labels")
    folder = inner if storage.is_folder(inner) else uri
    # Not from anywhere below: OUTPUT/_run holds Parquet files of another kind.
    sizes = {file: size for file, size in storage.file_sizes(folder, ".parquet").items() if "/_run/" not in file}
    if not sizes:
        raise StorageError(f"{folder}: no .parquet files; expected labels written by python -m jobs.label")
    return dict(sorted(sizes.items()))


@dataclass(frozen=True)
class ColumnRange:
    """What the footer says of a column in one row group.

    Attributes:
        least, most: of its values; None where it has only nulls.
        nulls: rows without a value.
    """

    least: Any
    most: Any
    nulls: int


@dataclass(frozen=True)
class OpenLabelFile:
    """A label file that is open; its schema is checked, and its rows are as they are read.

    Attributes:
        uri: of the file.
        categories: its table; empty where it carries none, as of proposals.
        row_groups: rows of each row group.
    """

    uri: str
    categories: tuple[Category, ...]
    row_groups: tuple[int, ...]
    _file: pq.ParquetFile

    def batches(
        self,
        columns: Sequence[str],
        rows_at_once: int = _ROWS_AT_ONCE,
        row_groups: Sequence[int] | None = None,
        fields: Sequence[str] | None = None,
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Place of the first row in the file, and the rows: whole columns in the records' types, checked.

        Args:
            columns: names, of the records; `image_id`, `width`, `height` and `status` among them.
            rows_at_once: rows of a batch, at most.
            row_groups: neighbouring ones; None = all.
            fields: of the detections, without which the others are not read, and these not checked; None = all.

        Raises:
            StorageError: the file cannot be read, or a row is not what it should be; names it.
        """
        chosen = list(range(len(self.row_groups)) if row_groups is None else row_groups)
        start = sum(self.row_groups[: chosen[0]]) if chosen else 0
        self.require_columns(columns)
        types = {name: _with_nulls(_TYPES[name]) for name in columns}
        read = [name for name in columns if name in self._file.schema_arrow.names]
        if fields is not None:
            types["detections"] = pa.list_(pa.struct([types["detections"].value_type.field(name) for name in fields]))
            read = [name for name in read if name != "detections"] + self._leaves(fields)
        with _naming(self.uri):
            for raw in self._file.iter_batches(rows_at_once, chosen, read):
                batch = self._as_records(raw, types)
                self._require_readable(
                    check_readable(batch, self.categories) if fields is None else check_images(batch), start
                )
                yield start, batch
                start += len(batch)

    def read(self, columns: Sequence[str], row_groups: Sequence[int] | None = None) -> pa.Table:
        """All rows; arguments and errors as of `batches`."""
        at_once = _ROWS_AT_ONCE if {"detections", "proposals"} & set(columns) else _LIGHT_ROWS_AT_ONCE
        batches = [batch for _, batch in self.batches(columns, at_once, row_groups)]
        return pa.Table.from_batches(batches, columns_schema(columns))

    def ranges(self, column: str) -> list[ColumnRange | None]:
        """What the footer says of a column of numbers or text, for each row group; None where it says nothing that can
        be relied on."""
        schema, metadata = self._file.schema_arrow, self._file.metadata
        if schema.names.count(column) != 1 or schema.field(column).type != _TYPES[column]:
            return [None] * len(self.row_groups)
        if not str(metadata.created_by).startswith(_EXACT_WRITER):
            return [None] * len(self.row_groups)
        paths = [self._file.schema.column(index).path for index in range(len(self._file.schema))]
        place = paths.index(column)
        with _naming(self.uri):
            return [_range(metadata.row_group(group).column(place).statistics) for group in range(len(self.row_groups))]

    def require_columns(self, columns: Sequence[str]) -> None:
        """Make sure that the columns are there.

        Raises:
            StorageError: one is not, or more than once; names the file.
        """
        names = list(self._file.schema_arrow.names)
        for name in columns:
            if name not in names and name not in _OPTIONAL_COLUMNS:
                raise StorageError(f"{self.uri}: not label records: column {name!r} is missing")
            if names.count(name) > 1:
                raise StorageError(f"{self.uri}: column {name!r} stands {names.count(name)} times, expected once")

    def _leaves(self, fields: Sequence[str]) -> list[str]:
        """Columns of Parquet that hold these fields; writers differ in what they call a list's elements."""
        paths = [self._file.schema.column(index).path for index in range(len(self._file.schema))]
        inside = [path for path in paths if path.startswith("detections.")]
        matching = [path for path in inside if set(fields) & set(path.split(".")[1:4])]
        return matching or inside or ["detections"]

    def _as_records(self, raw: pa.RecordBatch, types: Mapping[str, pa.DataType]) -> pa.RecordBatch:
        raw.validate(full=True)  # text that is no UTF-8, and lists that end where they should not
        arrays = []
        for name, wanted in types.items():
            if name not in raw.schema.names:
                arrays.append(pa.nulls(len(raw), wanted))
                continue
            array = raw.column(name)
            try:
                arrays.append(array if array.type == wanted else array.cast(wanted))
            except pa.ArrowException as error:
                raise StorageError(
                    f"{self.uri}: column {name!r} is {array.type!s:.200}, expected {wanted} ({_short(error)})"
                ) from error
        return pa.RecordBatch.from_arrays(arrays, list(types))

    def _require_readable(self, findings: Findings, start: int) -> None:
        if findings.first:
            offence = min(findings.first, key=lambda one: one.row or 0)
            image = "" if offence.image_id is None else f" (image {offence.image_id})"
            raise StorageError(
                f"{self.uri}: row number {start + (offence.row or 0) + 1}{image}: {offence.check}: {offence.got}, "
                f"expected {offence.expected}; python -m jobs.verify lists the rows that are wrong"
            )


def columns_schema(columns: Sequence[str]) -> pa.Schema:
    """Of some columns of label rows, as `OpenLabelFile` reads them."""
    return pa.schema([pa.field(name, _with_nulls(_TYPES[name])) for name in columns])


def _range(statistics: pq.Statistics | None) -> ColumnRange | None:
    if statistics is None or not statistics.has_null_count:
        return None
    if statistics.has_min_max:
        return ColumnRange(statistics.min, statistics.max, statistics.null_count)
    return ColumnRange(None, None, statistics.null_count) if statistics.num_values == 0 else None


def _with_nulls(wanted: pa.DataType) -> pa.DataType:
    """The same type where anything may be null: what is missing is named with its row, and not by its type."""
    if pa.types.is_list(wanted):
        return pa.list_(_with_nulls(wanted.value_type))
    if pa.types.is_struct(wanted):
        return pa.struct([pa.field(inner.name, _with_nulls(inner.type)) for inner in wanted])
    return wanted


@contextmanager
def open_label_file(uri: str, *, proposals: bool = False, pre_buffer: bool = False) -> Iterator[OpenLabelFile]:
    """A label file, open inside the block.

    Args:
        uri: of the file.
        proposals: they are wanted, and not detections.
        pre_buffer: fetch what is asked for in large parts: faster from S3, and more memory.

    Raises:
        StorageError: it is not Parquet, lacks a column, or holds other records than wanted.
    """
    filesystem, path = storage.filesystem_and_path(uri)
    with _naming(uri):
        file = pq.ParquetFile(path, filesystem=filesystem, pre_buffer=pre_buffer)
    with file:
        with _naming(uri):
            schema = file.schema_arrow
            groups = tuple(file.metadata.row_group(index).num_rows for index in range(file.num_row_groups))
            _require_label_schema(uri, schema, proposals)
            opened = OpenLabelFile(uri, () if proposals else _categories(uri, schema), groups, file)
        yield opened


@contextmanager
def _naming(uri: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:  # names that are no UTF-8 are ValueErrors
        raise StorageError(
            f"{uri}: cannot be read as Parquet: {_short(error)}; python -m jobs.verify finds such files"
        ) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _categories(uri: str, schema: pa.Schema) -> tuple[Category, ...]:
    try:
        require_version(schema)
        return schema_categories(schema)
    except StorageError as error:
        raise StorageError(f"{uri}: {error}") from error


def _require_label_schema(uri: str, schema: pa.Schema, proposals: bool) -> None:
    if proposals and "proposals" not in schema.names:
        raise StorageError(f"{uri}: not proposals: column 'proposals' is missing; give one run's folder")
    if is_proposals_schema(schema) and not proposals:
        raise StorageError(
            f"{uri}: holds proposals, expected detections; label without --label.record proposals "
            "(jobs.evaluate scores proposals as well)"
        )


def read_labels(uri: str) -> pa.Table:
    """The columns of label records that scoring needs, from `label_files(uri)`.

    Raises:
        StorageError: as `OpenLabelFile.batches`.
    """
    tables = []
    for name in label_files(uri):
        with open_label_file(name, pre_buffer=True) as file:
            tables.append(file.read(_SCORED_COLUMNS))
    return pa.concat_tables(tables)


def read_label_batches(
    uri: str, row_groups: tuple[int, ...], rows_at_once: int, category_ids: Mapping[int, int]
) -> Iterator[pa.Table]:
    """Rows of some row groups with their detections, a few at a time.

    Args:
        uri: of the file.
        row_groups: neighbouring ones.
        rows_at_once: at most.
        category_ids: as of `records.labels.with_category_ids`.

    Raises:
        StorageError: as `OpenLabelFile.batches`.
    """
    with open_label_file(uri, pre_buffer=True) as file:
        for _, batch in file.batches(_SCORED_COLUMNS, rows_at_once, row_groups):
            yield pa.Table.from_batches([with_category_ids(batch, category_ids)])


@dataclass
class CategoryNames:
    """Name of each category id in label files, one after the other.

    Attributes:
        names: by id.
        files: the first that has it, by id.
    """

    names: dict[int, str] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)

    def add(self, file: OpenLabelFile) -> None:
        """Take the names of a file: of its table, or where there is none, of its rows.

        Raises:
            StorageError: the file cannot be read, or one id has two names.
        """
        for number, name in [(one.id, one.name) for one in file.categories] or _named_in_rows(file):
            self.add_name(file.uri, number, name)

    def add_name(self, uri: str, number: int, name: str) -> None:
        """Take the name of one category in a file; errors as of `add`."""
        if number not in self.names:
            self.names[number], self.files[number] = name, uri
        elif self.names[number] != name:
            raise StorageError(
                f"{uri}: category {number} is {name!r} here, {self.names[number]!r} in other rows; expected "
                "labels of one model at a time"
            )

    def join(self, later: "CategoryNames") -> None:
        """Take the names of files that come behind these; errors as of `add`."""
        for number, name in later.names.items():
            self.add_name(later.files[number], number, name)


def category_names(files: Sequence[str], readers: Readers = HERE) -> dict[int, str]:
    """Name of each category id in some label files, by id.

    Raises:
        StorageError: as `CategoryNames.add`.
    """
    categories = CategoryNames()
    for some in readers.in_order(_names_of_part, [(part,) for part in readers.parts(files)]):
        categories.join(some)
    return dict(sorted(categories.names.items()))


def _names_of_part(files: Sequence[str]) -> CategoryNames:
    categories = CategoryNames()
    for uri in files:
        with open_label_file(uri) as file:
            categories.add(file)
    return categories


def _named_in_rows(file: OpenLabelFile) -> list[tuple[int, str]]:
    pairs: set[tuple[int, str]] = set()
    for _, batch in file.batches(_SCORED_COLUMNS):
        structs = pc.list_flatten(batch.column("detections"))
        columns = {name: pc.struct_field(structs, name) for name in ("category_id", "category")}
        named = pa.table(columns).group_by(list(columns)).aggregate([]).to_pylist()
        pairs |= {(row["category_id"], row["category"]) for row in named}
    return sorted(pairs)
