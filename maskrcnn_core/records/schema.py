"""How a Parquet file says that its rows hold proposals; apart from their reader, so that asking needs no torch."""

import pyarrow as pa

RECORD_KEY = b"maskrcnn.record"
"""Where a file's metadata says what its rows hold; files of detections have no such entry."""
PROPOSALS_KIND = b"proposals"

ROWS_PER_GROUP = 16
"""Proposals of images in a row group: reading one image costs reading so many, a millisecond or so with 1000 each."""


PROPOSALS_TYPE = pa.list_(
    pa.struct(
        [
            pa.field("bbox", pa.list_(pa.float32()), nullable=False),
            pa.field("score", pa.float32(), nullable=False),
        ]
    )
)


def is_proposals_schema(schema: pa.Schema) -> bool:
    """Whether a label file's rows hold proposals instead of detections."""
    return bool((schema.metadata or {}).get(RECORD_KEY) == PROPOSALS_KIND)
