"""A `LabelWorker` as an actor of Ray Data: chunks in, label files out, and what becomes of it on a broken device."""

import os
import pickle
import time

import pyarrow as pa
import ray

from maskrcnn_core.errors import UserError
from pipelines.labelling.device_board import BrokenDetectorError, too_many_given_up
from pipelines.labelling.device_faults import this_device
from pipelines.labelling.remote_board import RemoteBoard
from pipelines.labelling.signs_of_life import give_signs, this_process
from pipelines.labelling.worker import LabelWorker
from pipelines.labelling.worker_settings import LoadPredictor, WorkerSettings
from pipelines.labels import run_folder
from pipelines.labels.chunks import Chunk, LabelFile

_LOOK_SECONDS = 3.0
_EXIT_BROKEN = 125


class RayWorker:
    """Callable for `map_batches`: chunks of the manifest become label files; what returns are their counts.

    On a device that was given up it holds that device, so that no other process begins there, and returns the chunks
    that were meant for it once nobody else has anything to do.
    """

    def __init__(self, load: LoadPredictor, settings: WorkerSettings, board: RemoteBoard) -> None:
        self._board, self._device = board, this_device()
        self._worker: LabelWorker | None = None
        self._mistake: UserError | None = None
        process = this_process(ray.get_runtime_context().get_node_id())
        give_signs(lambda: board.sign(process))
        standing = board.join(self._device)
        if standing.ends_run:
            self._mistake = too_many_given_up(standing)
        elif standing.is_given_up:
            while not board.is_quiet():
                time.sleep(_LOOK_SECONDS)
        else:
            self._worker = _loaded(load, settings, board)

    def __call__(self, tasks: pa.Table) -> pa.Table:
        """Label the chunks of tasks (see `run_folder.write_todo`) and write a file for each; returns its name and
        `LabelFile` for each, or None where it was left to others.

        A mistake of the user comes back as a row as well: Ray Data would wrap its report around an exception's text.
        """
        some = run_folder.todo_in(tasks)
        results = [pickle.dumps(self._file_or_mistake(chunk)) for chunk in some]
        return pa.table({"name": [chunk.name for chunk in some], "result": pa.array(results, pa.binary())})

    def _file_or_mistake(self, chunk: Chunk) -> LabelFile | UserError | None:
        if self._worker is None:
            return self._mistake
        self._board.begin_chunk(self._device, chunk.name)
        try:
            return self._worker.label_chunk(chunk)
        except UserError as error:
            return error
        except BrokenDetectorError:
            os._exit(_EXIT_BROKEN)  # Ray starts another process, and gives it the same chunks
        finally:
            self._board.end_chunk(chunk.name)


def _loaded(load: LoadPredictor, settings: WorkerSettings, board: RemoteBoard) -> LabelWorker:
    try:
        return LabelWorker(load, settings, board)
    except BrokenDetectorError:
        os._exit(_EXIT_BROKEN)
