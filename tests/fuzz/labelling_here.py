"""A labelling run without a cluster: its driver and its worker in this process, one chunk after the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster.connection import NodeCapacity
from pipelines.images.manifest import Tasks, one_by_one
from pipelines.labelling import run as labelling
from pipelines.labelling.config import LabelConfig, LabelRun
from pipelines.labelling.detector import Detector
from pipelines.labelling.planning import plan_workers
from pipelines.labelling.progress import Counts, ProgressBoard
from pipelines.labelling.worker import LabelWorker
from pipelines.labelling.worker_settings import WorkerSettings
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
        patch.setattr(labelling, "_backend", lambda run, *_: _ThisProcess(run))
        yield


class _ThisProcess:
    """A `Backend` of one worker, with the plan of a machine of four CPUs."""

    def __init__(self, run: LabelRun) -> None:
        self._label = replace(run.label, use_gpu=run.label.use_gpu is True)

    def start_loading(self, detector: Detector, settings: WorkerSettings) -> None:
        pass

    def fingerprint(self, detector: Detector, settings: WorkerSettings) -> str:
        return detector.fingerprint(settings)

    def tasks(self) -> Tasks:
        return one_by_one

    def fitted(self) -> LabelConfig:
        return self._label

    def num_workers(self) -> int:
        return plan_workers(self._label, (NodeCapacity(4, 0),)).workers

    def worker_threads(self) -> int:
        return 1

    def label_chunks(
        self, detector: Detector, settings: WorkerSettings, todo: Sequence[Chunk], *_: Any
    ) -> tuple[Counts, dict[str, LabelFile]]:
        board = ProgressBoard()
        worker = LabelWorker(detector.load, settings, board)
        files = {chunk.name: worker.label_chunk(chunk) for chunk in todo}
        return board.snapshot(), files
