"""Images inside Parquet files, a row each, as Hugging Face's and Ray's data sets have them: a column of bytes, or of a
struct with `bytes` and `path`. Each is named by where it lies, and row groups are read whole.

    s3://bucket/data/train-00000.parquet#column=image.bytes&group=3&row=17

Rows are counted within their group. A manifest is sorted by ids, so neighbours have neighbouring ones: the group that
was read last serves the next images as well.
"""

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from maskrcnn_core.data.files import require_bytes, uri_of
from maskrcnn_core.errors import AnnotationError, ImageError
from pipelines import storage
from pipelines.images.parts import BATCH_ROWS, Entries, Part

PARQUET_EXTENSION = ".parquet"

_ROW = re.compile(r"(?P<file>.+)#column=(?P<column>[^#&]+)&group=(?P<group>\d{1,9})&row=(?P<row>\d{1,9})", re.S)

# Columns of such a name are taken before others.
_USUAL_NAMES = ("image", "img", "jpg", "jpeg", "png", "image_bytes", "bytes")

# Groups are read at once and kept: the one that is being labelled, and the next, which readers have begun on.
_KEPT_GROUPS = 3
_MOST_GROUP_BYTES = 4 << 30

_ROW_BITS = 23


@dataclass(frozen=True)
class ParquetRow:
    """An image in a Parquet file.

    Attributes:
        file: path or uri.
        column: its name, with a dot before the field of a struct.
        group: row group.
        row: in it.
    """

    file: str
    column: str
    group: int
    row: int

    @property
    def uri(self) -> str:
        """Its name in manifests and rows."""
        return f"{self.file}#column={quote(self.column, safe='')}&group={self.group}&row={self.row}"


def parquet_row_of(uri: str) -> ParquetRow | None:
    """The image in a Parquet file that a uri names; None = it names something else."""
    match = _ROW.fullmatch(uri) if "#column=" in uri else None
    if match is None:
        return None
    return ParquetRow(match["file"], unquote(match["column"]), int(match["group"]), int(match["row"]))


def image_column(schema: pa.Schema) -> str | None:
    """The column that holds images' bytes, as `ParquetRow` names it; None = there is none, or several."""
    found = {}
    for field in schema:
        if _is_bytes(field.type):
            found[field.name] = field.name
        elif pa.types.is_struct(field.type):
            index = field.type.get_field_index("bytes")
            if index >= 0 and _is_bytes(field.type.field(index).type):
                found[field.name] = f"{field.name}.bytes"
    usual = [name for name in _USUAL_NAMES if name in found]
    names = usual or list(found)
    return found[names[0]] if usual or len(names) == 1 else None


def image_rows(part: Part, file: pq.ParquetFile, column: str) -> Iterator[Entries]:
    """The images of a file, at most some ten thousand at a time, without reading them.

    Their ids are those of a column `image_id`, where it has one (in another order than the rows they cost a group for
    each image), else the file's name, as 40 bits, and the number of the row.

    Raises:
        AnnotationError: an image_id is none.
    """
    name = uri_of(storage.absolute(part.path)) if storage.is_local(part.path) else part.path
    has_ids = "image_id" in file.schema_arrow.names
    before = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        ids = _given_ids(part.path, file, group) if has_ids else [_id(name, before + row) for row in range(rows)]
        before += rows
        for start in range(0, rows, BATCH_ROWS):
            some = range(start, min(start + BATCH_ROWS, rows))
            yield Entries(
                [ParquetRow(name, column, group, row).uri for row in some],
                ids=ids[start : some.stop],
            )


class RowGroups:
    """Reads images out of row groups, a few of which it keeps; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[str, str, int], _Group] = OrderedDict()

    def read(self, row: ParquetRow, most_bytes: int) -> bytes:
        """The bytes of an image.

        Raises:
            ImageError: the file is damaged, has no such row or nothing in it, or the row's group is too large.
            TooManyBytes: it has more than `most_bytes`.
            OSError: the file is not there, or out of reach.
        """
        key = (row.file, row.column, row.group)
        with self._lock:
            group = self._groups.setdefault(key, _Group())
            self._groups.move_to_end(key)
            while len(self._groups) > _KEPT_GROUPS:
                self._groups.popitem(last=False)
        try:
            images = group.images(row)
        except BaseException:
            with self._lock:
                self._groups.pop(key, None)  # which may be there when it is tried again
            raise
        if row.row >= len(images):
            raise _unreadable(f"row group {row.group} has {len(images)} rows, not {row.row + 1}: the file has changed")
        content = images[row.row]
        if not content.is_valid:
            raise _unreadable(f"{row.column} is null in this row")
        buffer = content.as_buffer()
        require_bytes(buffer.size, most_bytes)
        return bytes(buffer)


class _Group:
    """One column of a row group, read by whoever asks first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: pa.ChunkedArray | None = None

    def images(self, row: ParquetRow) -> pa.ChunkedArray:
        with self._lock:
            if self._images is None:
                self._images = _read_group(row)
            return self._images


def _read_group(row: ParquetRow) -> pa.ChunkedArray:
    filesystem, path = storage.filesystem_and_path(row.file)
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            if row.group >= file.num_row_groups:
                raise _unreadable(f"it has {file.num_row_groups} row groups, not {row.group + 1}: the file has changed")
            size = file.metadata.row_group(row.group).total_byte_size
            if size > _MOST_GROUP_BYTES:
                raise _unreadable(f"row group {row.group} has {size:,} bytes; write the file anew with smaller ones")
            name, _, field = row.column.partition(".")
            column = file.read_row_group(row.group, columns=[row.column]).column(name)
    except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _unreadable(f"the Parquet file is damaged or has changed: {reason}") from error
    if not field:
        return column
    return pa.chunked_array([_field(chunk, field) for chunk in column.chunks], type=column.type.field(field).type)


def _unreadable(reason: str) -> ImageError:
    """A fault of the file, which is no sign that storage is out of order."""
    return ImageError("unreadable", reason)


def _field(chunk: pa.StructArray, field: str) -> pa.Array:
    """A struct's field, null where the struct is."""
    return chunk.flatten()[chunk.type.get_field_index(field)]


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or kind == pa.binary_view())


def _id(file: str, row: int) -> int:
    """63 bits, ascending with the rows of a file."""
    block, within = divmod(row, 1 << _ROW_BITS)
    digest = hashlib.blake2b(f"{file}#{block}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> (1 + _ROW_BITS) << _ROW_BITS) + within


def _given_ids(path: str, file: pq.ParquetFile, group: int) -> list[int]:
    column = file.read_row_group(group, columns=["image_id"]).column(0)
    if not pa.types.is_integer(column.type) or column.null_count:
        raise AnnotationError(
            f"images: {path!r}, row group {group}: image_id is {column.type}, {column.null_count} of them null; "
            "expected a whole number in each row, or no such column"
        )
    ids: list[int] = column.to_pylist()
    return ids
