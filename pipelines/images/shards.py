"""Which files among listed ones hold many images."""

import re
from typing import Literal

from pipelines.images.parquet_images import PARQUET_EXTENSION
from pipelines.images.parts import Part
from pipelines.images.tar_shards import TAR_EXTENSION


def shard_kind(name: str, part: Part) -> Literal["tar", "parquet"] | None:
    """Whether a file holds images. Parquet files, which may be anything, are opened where a pattern asks for them."""
    if name.lower().endswith(TAR_EXTENSION):
        return "tar"
    asks = part.pattern is not None and part.pattern.lower().endswith(re.escape(PARQUET_EXTENSION))
    return "parquet" if asks and name.lower().endswith(PARQUET_EXTENSION) else None
