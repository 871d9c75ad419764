"""A Parquet file with a proof of itself: the SHA-256 of all its bytes, in its own metadata.

The digest is that of the file with zeros in the digest's place, so that it covers everything: pages, footer, magic
numbers. It travels with the file, wherever that is copied, and costs no second file whose writing could be broken off.
"""

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

_KEY = b"maskrcnn.sha256"
_BLANK = b"0" * 64


def sealed(table: pa.Table, *, row_group_size: int | None = None, repeating: Sequence[str] | None = None) -> bytes:
    """The table as a Parquet file that holds its own digest; its pages have checksums of their own, which say where
    damage is.

    Args:
        table: the rows.
        row_group_size: rows of a row group; None = Arrow's choice.
        repeating: columns (paths within Parquet) whose values come again and again: they get dictionaries. None = all.
    """
    sink = pa.BufferOutputStream()
    dictionaries = True if repeating is None else [*repeating]
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", use_dictionary=dictionaries, write_page_checksum=True
    ) as writer:
        writer.write_table(table, row_group_size=row_group_size)
        writer.add_key_value_metadata({_KEY.decode(): _BLANK.decode()})
    content: bytes = sink.getvalue().to_pybytes()
    start = _digest_start(content)
    assert start is not None
    assert content[start : start + len(_BLANK)] == _BLANK
    return content[:start] + hashlib.sha256(content).hexdigest().encode() + content[start + len(_BLANK) :]


def seal_of(content: bytes) -> tuple[str, str] | None:
    """The digest in a file, as it should be; and the one that the file has. None where it holds none: it was written by
    an earlier release, or is damaged just there."""
    start = _digest_start(content)
    if start is None:
        return None
    written = content[start : start + len(_BLANK)]
    digest = hashlib.sha256(memoryview(content)[:start])
    digest.update(_BLANK)
    digest.update(memoryview(content)[start + len(_BLANK) :])
    return written.decode("ascii", "replace"), digest.hexdigest()


def seal_in(metadata: dict[bytes, bytes]) -> str:
    """The digest in a file's key-value metadata; empty where there is none."""
    return metadata.get(_KEY, b"").decode("ascii", "replace")


def _digest_start(content: bytes) -> int | None:
    """Where the digest stands: behind the last mention of its name, in the footer."""
    name = content.rfind(_KEY)
    if name < 0:
        return None
    # Thrift writes a field's type and the value's length between a name and its value.
    start = name + len(_KEY) + 2
    return start if start + len(_BLANK) <= len(content) else None
