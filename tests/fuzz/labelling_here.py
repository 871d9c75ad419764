"""A labelling run without a cluster: its driver and its worker in this process, one chunk after the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_core.label_config import LabelConfig, LabelRun
from pipelines import labelling
from pipelines.cluster import NodeCapacity
from pipelines.label_execution import Detector
from pipelines.label_output import Chunk
from pipelines.label_progress import Counts, ProgressBoard
from pipelines.label_worker import LabelWorker, Task, WorkerSettings
from tests.pipelines.fake_detector import FAKE

ROWS_PER_FILE = 2


def label_here(images: Path, output: Path) -> labelling.LabelSummary:
    """Labels a folder of images with a detector without weights; raises as `labelling.label` does."""
    settings = LabelRun("checkpoint", str(images), str(output), label=LabelConfig(rows_per_file=ROWS_PER_FILE))
    with _without_cluster():
        return labelling.label(settings, detector=FAKE)


@contextmanager
def _without_cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelling, "connect", lambda *_, **__: nullcontext())
        patch.setattr(labelling, "nodes", lambda: (NodeCapacity(4, 0),))
        patch.setattr(labelling, "label_on_cluster", _label)
        yield


def _label(
    run: LabelRun, detector: Detector, settings: WorkerSettings, task: Task, todo: Sequence[Chunk], *_: Any
) -> Counts:
    board = ProgressBoard()
    worker = LabelWorker(detector.load, settings, board)
    for chunk in todo:
        worker.label_chunk(chunk, task)
    return board.snapshot()
