"""A labelling run without a cluster: its driver and its worker in this process, one chunk after the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster.capacity import Capacity
from pipelines.cluster.connection import NodeCapacity
from pipelines.labelling import machines
from pipelines.labelling import run as labelling
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.execution import Detector
from pipelines.labelling.progress import Counts, ProgressBoard
from pipelines.labelling.worker import LabelWorker, WorkerSettings
from pipelines.labels.chunks import Chunk, LabelFile
from tests.pipelines.fake_detector import FAKE

ROWS_PER_FILE = 2


def label_here(images: Path, output: Path) -> labelling.LabelSummary:
    """Labels a folder of images with a detector without weights; raises as `labelling.label` does."""
    return run_here(LabelRun("checkpoint", str(images), str(output), label=LabelConfig(rows_per_file=ROWS_PER_FILE)))


def run_here(run: LabelRun) -> labelling.LabelSummary:
    """The same for any run."""
    with _without_cluster():
        return labelling.label(run, detector=FAKE)


@contextmanager
def _without_cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelling, "connect", lambda *_, **__: nullcontext())
        patch.setattr(labelling, "nodes", lambda: (NodeCapacity(4, 0),))
        patch.setattr(machines, "read_capacity", lambda: Capacity(({"CPU": 4.0},), is_own=True))
        patch.setattr(labelling, "label_on_cluster", _label)
        yield


def _label(
    run: LabelRun, detector: Detector, settings: WorkerSettings, todo: Sequence[Chunk], *_: Any
) -> tuple[Counts, dict[str, LabelFile]]:
    board = ProgressBoard()
    worker = LabelWorker(detector.load, settings, board)
    files = {chunk.name: worker.label_chunk(chunk) for chunk in todo}
    return board.snapshot(), files
