"""Where the chunks of a run begin and end: large ones, and small ones of the last images, so that at the end no worker
has much to do while others have nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipelines.labels.chunks import Chunk


@dataclass(frozen=True)
class ChunkPlan:
    """Sizes of chunks.

    Attributes:
        rows: images of a chunk.
        small_rows: images of a chunk at the end of the manifest.
        small_images: how many images, counted from the end of the manifest, at least lie in small ones.
    """

    rows: int
    small_rows: int = 0
    small_images: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.small_images < 0 or (self.small_images and self.small_rows < 1):
            raise ValueError(f"{self}: expected chunks of at least one image")

    def chunks(self, parts: Iterable[int]) -> Iterator[Chunk]:
        """All chunks of a manifest, in order.

        Args:
            parts: images of each part.
        """
        parts = list(parts)
        left = sum(parts)
        for part, total in enumerate(parts):
            start = 0
            while start < total:
                rows = self.rows if left - start > self.small_images else self.small_rows
                stop = min(start + rows, total)
                yield Chunk(part, start, stop)
                start = stop
            left -= total
