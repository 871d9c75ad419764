"""Which images each step learned from, as it happened: OUTPUT/samples/AFTER-UPTO.jsonl, a line for each step.

A part is written before the checkpoint that ends it. A run that was cut off repeats the steps since its last
checkpoint, with the same images, so a step may stand in two parts.
"""

import json
from collections.abc import Sequence

from maskrcnn_core.errors import StorageError
from pipelines import storage
from pipelines.training.gathering import gather_to_first


class SampleLog:
    """Image ids since the last checkpoint.

    Args:
        output: folder of the run.
        start: steps done.
        rank, world_size: of this worker.
    """

    def __init__(self, output: str, start: int, rank: int, world_size: int) -> None:
        self._output, self._start, self._rank, self._world_size = output, start, rank, world_size
        self._images: list[list[int]] = []

    def add(self, image_ids: Sequence[int]) -> None:
        """This worker's images of the next step."""
        self._images.append(list(image_ids))

    def write(self) -> None:
        """Write the steps since the last call; every worker has to call it, the first one writes."""
        parts = gather_to_first(self._images, rank=self._rank, world_size=self._world_size)
        stop = self._start + len(self._images)
        if self._rank == 0 and self._images:
            lines = [
                json.dumps(
                    {"step": step, "images": [image for share in shares for image in share], "workers": len(parts)}
                )
                for step, shares in enumerate(zip(*parts, strict=True), self._start)
            ]
            uri = storage.join(self._output, "samples", f"{self._start:08d}-{stop:08d}.jsonl")
            storage.write_bytes_atomically(uri, ("\n".join(lines) + "\n").encode())
        self._start, self._images = stop, []


def read_samples(output: str) -> dict[int, tuple[int, ...]]:
    """Step (from 0) -> its image ids, in the order of the batch.

    Raises:
        StorageError: there is no such log, or two parts tell different images of one step.
    """
    samples: dict[int, tuple[int, ...]] = {}
    for uri in storage.list_files(storage.join(output, "samples"), ".jsonl"):
        for line in storage.read_bytes(uri).splitlines():
            entry = json.loads(line)
            images = tuple(entry["images"])
            if samples.setdefault(entry["step"], images) != images:
                raise StorageError(f"{uri}: step {entry['step']} shows other images than an earlier part of the log")
    return samples
