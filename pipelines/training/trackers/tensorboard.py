"""TensorBoard's event files in OUTPUT/tensorboard."""

import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from pipelines import storage
from pipelines.training.checkpoint_store import copy_file
from pipelines.training.trackers.tracker import Outcome


class TensorBoardTracker:
    """Writes event files; those of a remote output are copied there by `store`.

    Args:
        output: folder of the run.
        start: steps done. Entries of later steps were written by a run that was cut off, and come again.
    """

    def __init__(self, output: str, start: int) -> None:
        self._uri = storage.join(output, "tensorboard")
        self._is_local = storage.is_local(self._uri)
        self._folder = (
            Path(storage.filesystem_and_path(self._uri)[1])
            if self._is_local
            else Path(tempfile.mkdtemp(prefix="maskrcnn-tensorboard-"))
        )
        self._writer = SummaryWriter(str(self._folder), purge_step=start + 1 if start else None)
        self._copied: dict[Path, int] = {}
        self._lock = threading.Lock()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """See `Tracker`."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def store(self) -> None:
        """What was written so far is where the run's folder is: files that have grown are copied. From any thread.

        Raises:
            StorageError: they cannot be.
        """
        self._writer.flush()
        self._copy()

    def close(self, outcome: Outcome, results: Mapping[str, float]) -> None:
        """See `Tracker`; a run that has failed copies nothing more, its own error is what should be heard."""
        self._writer.close()
        if outcome != "failed":
            self._copy()
        if not self._is_local:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _copy(self) -> None:
        if self._is_local:
            return
        with self._lock:
            for path in sorted(path for path in self._folder.rglob("*") if path.is_file()):
                size = path.stat().st_size
                if self._copied.get(path) != size:
                    copy_file(path, storage.join(self._uri, str(path.relative_to(self._folder))))
                    self._copied[path] = size
