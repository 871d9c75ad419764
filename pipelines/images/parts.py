"""What the parts of a source of images are, and what listing one gives."""

from dataclasses import dataclass
from typing import Literal

from pipelines.storage.s3_listing import KeyRange

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")

Kind = Literal["folder", "glob", "file", "coco", "parquet", "csv", "inventory", "tar"]

# Images that are handed on at once.
BATCH_ROWS = 10_000


@dataclass(frozen=True)
class Part:
    """What one task lists.

    Attributes:
        kind: of the source.
        path: folder, file, tar shard or data file of an inventory, with a scheme where it is not local.
        recursive: folders: with everything below.
        pattern: globs: what names relative to `root` must match.
        root: folder that relative names belong to.
        keys: a range of S3 keys instead of `path`.
        columns: of an inventory's headerless CSV.
    """

    kind: Kind
    path: str
    recursive: bool = True
    pattern: str | None = None
    root: str = ""
    keys: KeyRange | None = None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entries:
    """Some images of a source, column by column.

    Attributes:
        uris: absolute, or with a scheme.
        ids: given by the source; None = to be made from the uris.
        sizes: bytes; etags: as S3 gives them. None where the source does not say.
        widths, heights: pixels, where the source says.
        others: names that were seen and are no images.
        left: parts of this one that were passed over, and are to be listed as well.
    """

    uris: list[str]
    ids: list[int] | None = None
    sizes: list[int | None] | None = None
    etags: list[str | None] | None = None
    widths: list[int | None] | None = None
    heights: list[int | None] | None = None
    others: int = 0
    left: tuple[Part, ...] = ()


def is_hidden(name: str) -> bool:
    """Whether a part of a name begins with a dot; `.` and `..`, which S3's keys may hold, hide nothing."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
