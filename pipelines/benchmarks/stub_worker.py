"""A worker that only takes its time: what is left of a labelling run is the driver's work. Without torch, so that
hundreds of them fit into one machine."""

import pickle
import time
from typing import Any

import pyarrow as pa

from pipelines.labelling.device_faults import this_device
from pipelines.labelling.progress import Work
from pipelines.labelling.remote_board import RemoteBoard
from pipelines.labelling.worker_settings import LoadPredictor, WorkerSettings
from pipelines.labels import run_folder
from pipelines.labels.chunks import Chunk, LabelFile, Tally


class StubWorker:
    """Stands in for `ray_worker.RayWorker`; the checkpoint of the settings is the seconds that a chunk takes."""

    def __init__(self, load: LoadPredictor, settings: WorkerSettings, board: RemoteBoard) -> None:
        self._board, self._device = board, this_device()
        self._seconds, self._group = float(settings.checkpoint), settings.group_size
        board.join(self._device)

    def __call__(self, tasks: pa.Table) -> pa.Table:
        """Report as a worker does, and return what it would."""
        some = run_folder.todo_in(tasks)
        results = [pickle.dumps(self._label(chunk)) for chunk in some]
        return pa.table({"name": [chunk.name for chunk in some], "result": pa.array(results, pa.binary())})

    def _label(self, chunk: Chunk) -> LabelFile:
        self._board.begin_chunk(self._device, chunk.name)
        groups = range(chunk.start, chunk.stop, self._group)
        for start in groups:
            self._board.begin(start)
            time.sleep(self._seconds / len(groups))
            images = min(self._group, chunk.stop - start)
            self._board.done(start, Work(images, images, device=self._device))
        self._board.end_chunk(chunk.name)
        images = chunk.stop - chunk.start
        return LabelFile(Tally({"ok": images}, images), "0" * 64, 1)


def never_loaded(checkpoint: str, settings: Any) -> Any:
    """A stub has no detector."""
    raise AssertionError
