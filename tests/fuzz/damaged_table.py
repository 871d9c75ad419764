"""Random damage to a table: its columns, their types, the metadata, single values."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.damage import ODD_VALUES, damaged_bytes


def damage_table(path: Path, random_: random.Random) -> None:
    """A Parquet file becomes another, or an empty one where no file can have what came of it."""
    table = _damaged(pq.read_table(path), random_)
    try:
        pq.write_table(table, path)
    except pa.ArrowException:  # a type, or a null, that no file can have
        path.write_bytes(b"")


def _damaged(table: pa.Table, random_: random.Random) -> pa.Table:
    what = random_.random()
    if what < 0.12:
        return table.drop_columns([random_.choice(table.column_names)])
    if what < 0.2:
        name = random_.choice(table.column_names)
        return table.append_column(name, table.column(name))
    if what < 0.3:
        metadata = dict(table.schema.metadata or {})
        key = random_.choice([*metadata, b"maskrcnn.other"])
        metadata[key] = damaged_bytes(metadata.get(key, b"{}"), random_)
        return table.replace_schema_metadata(metadata)
    if what < 0.4:
        name = random_.choice(table.column_names)
        odd = pa.array([random_.choice(("x", None))] * len(table))
        return table.set_column(table.column_names.index(name), pa.field(name, odd.type, nullable=True), odd)
    rows = table.to_pylist()
    _damage_row(random_.choice(rows), random_)
    return _table_of(rows, table.schema)


def _damage_row(row: dict[str, Any], random_: random.Random) -> None:
    """A value of the row, or of one of its detections, becomes another."""
    holder: Any = row
    key: Any = random_.choice(list(row))
    while isinstance(holder[key], list | dict) and holder[key] and random_.random() < 0.85:
        holder = holder[key]
        key = random_.choice(list(holder)) if isinstance(holder, dict) else random_.randrange(len(holder))
    odd = [*ODD_VALUES, "missing", 0.0, 2, 3.5, "../../../outside.jpg", "/absolute.jpg", "C:\\x.jpg", "a//b.jpg"]
    holder[key] = random_.choice(odd)


def _table_of(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """The rows under the schema if it can hold them, else under what they look like, else nulls."""
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    for wanted in (nullable, None):
        try:
            return pa.Table.from_pylist(rows, schema=wanted).replace_schema_metadata(schema.metadata)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
            continue
    return pa.table({name: pa.nulls(len(rows)) for name in schema.names}).replace_schema_metadata(schema.metadata)
