"""Types of the columns of annotation shards: those that other programs write, made those of `column_schema`.

Whole numbers of any width stand for others and for numbers with a point, bytes for text, and a dictionary for what it
holds; a column of nulls has no values. A column of something else is refused. A value that its column's type has and
ours has not (1.5 or 10^30 for an id, bytes that are no text) is null in our columns and as it is in the row.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import pyarrow as pa

from maskrcnn_core.errors import AnnotationError

_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatch)


def typed(rows: _Rows, schema: pa.Schema, needed: Sequence[str], what: str) -> _Rows:
    """The columns that are known, each of a type that `fitted` takes.

    Args:
        schema: of ours.
        needed: columns that must be there.
        what: is in the shards, for the message.

    Raises:
        AnnotationError: a column is missing, there twice, or of another type.
    """
    names = rows.schema.names
    for name in needed:
        if name not in names:
            raise AnnotationError(f"shards of {what}: no column {name!r}, expected {', '.join(needed)}")
    known = [name for name in schema.names if name in names]
    for name in known:
        if names.count(name) > 1:
            raise AnnotationError(
                f"shards of {what}: column {name!r} is there {names.count(name)} times, expected once"
            )
    columns = [_plain(rows.column(name), schema.field(name), what) for name in known]
    return type(rows).from_arrays(columns, names=known)


def fitted(column: Any, field: pa.Field) -> Any:
    """The values under the type of a field; null where that type has no such value.

    Args:
        column: of `typed`, an array or a chunked one.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    try:
        return column.cast(field.type)
    except pa.ArrowInvalid:
        return pa.array([_fits(value, field.type) for value in column], field.type)


def _fits(value: pa.Scalar, form: pa.DataType) -> Any:
    try:
        return value.cast(form).as_py()
    except pa.ArrowInvalid:
        return None


def _plain(column: Any, field: pa.Field, what: str) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), field.type)
    if not _stands_for(column.type, field.type):
        raise AnnotationError(f"shards of {what}: column {field.name!r} of {column.type}, expected {field.type}")
    return column


def _stands_for(given: pa.DataType, ours: pa.DataType) -> bool:
    types = pa.types
    if types.is_null(given):  # of lists that are all empty
        return True
    if _is_list(ours):
        return _is_list(given) and _stands_for(given.value_type, ours.value_type)
    if types.is_string(ours):
        return bool(types.is_string(given) or types.is_large_string(given) or types.is_binary(given))
    return bool(types.is_integer(given) or types.is_floating(given) or types.is_boolean(given))


def _is_list(form: pa.DataType) -> bool:
    return bool(pa.types.is_list(form) or pa.types.is_large_list(form) or pa.types.is_fixed_size_list(form))
