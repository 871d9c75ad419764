"""Checkpoints of a run: written beside the training loop, published for other jobs, found again after a crash."""

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from maskrcnn_core.errors import StorageError, UserError
from pipelines import storage
from pipelines.cluster.lost_processes import as_write_error
from pipelines.training.checkpoint_store import MANIFEST_NAME, StoredCheckpoint, store_checkpoint
from pipelines.training.output import checkpoint_uri, owns, publish, resume_uri


class CheckpointSaver:
    """Takes complete local folders to the store, one after the other, in a thread; on one worker of a run.

    Args:
        output: folder of the run.
        owner: of `output.take_over`; nothing is written once another process has taken the run over.
        on_saved: called in the thread with the step and the uri of `last` when a checkpoint is safe and published.
    """

    def __init__(self, output: str, owner: str, on_saved: Callable[[int, str], None]) -> None:
        self._output, self._owner, self._on_saved = output, owner, on_saved
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """A folder to write the checkpoint of `step` into; it is stored after the block.

        Raises:
            UserError: the checkpoint before could not be stored.
        """
        self.wait()
        folder = staging_folder(self._output)
        try:
            yield folder
        except BaseException as error:
            known = as_write_error(error, folder, self._output)  # before there is room again
            shutil.rmtree(folder, ignore_errors=True)
            if known is error:
                raise
            raise known from error
        self._thread = threading.Thread(target=self._store, args=(folder, step), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until what was saved is safe.

        Raises:
            UserError: it could not be stored.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _store(self, folder: Path, step: int) -> None:
        try:
            if not owns(self._output, self._owner):
                raise UserError(
                    f"{self._output}: another process has taken this run over; expected one at a time (stop one of the "
                    "two commands)"
                )
            stored = store_checkpoint(folder, resume_uri(self._output), step)
            uri = checkpoint_uri(self._output, "last")
            publish_stored(stored, self._output, uri)
            self._on_saved(step, uri)
        except BaseException as error:  # raised again where the loop waits
            self._error = as_write_error(error, folder, self._output)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def staging_folder(output: str) -> Path:
    """A new folder: on the output's own file system where that is local, so that publishing is a rename."""
    parent = None
    if storage.is_local(output):
        parent = Path(storage.filesystem_and_path(output)[1], "checkpoints")
        parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".staging-", dir=parent))


def clear_staging(output: str) -> None:
    """Remove what a process that was cut off left half-written."""
    if storage.is_local(output):
        root = Path(storage.filesystem_and_path(output)[1])
        leftovers = [*root.glob("checkpoints/.staging-*"), *root.glob("resume/.unfinished-*")]
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)


def publish_stored(stored: StoredCheckpoint, output: str, uri: str) -> None:
    """Make a stored checkpoint appear at `uri`, over an older one, without copying it through this machine.

    Raises:
        StorageError: it cannot be written.
    """
    if storage.is_local(uri):
        folder = staging_folder(output)
        try:
            _link_files(Path(storage.filesystem_and_path(stored.uri)[1]), folder)
            publish(folder, uri)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    filesystem, stored_path = storage.filesystem_and_path(stored.uri)
    _, target = storage.filesystem_and_path(uri)
    names = [path[len("s3://") + len(stored_path) + 1 :] for path in storage.list_files(stored.uri)]
    try:
        # The weights last: until then `last` may name the older ones, but never none.
        for name in sorted((name for name in names if name != MANIFEST_NAME), key=lambda name: Path(name).suffix):
            filesystem.copy_file(f"{stored_path}/{name}", f"{target}/{name}")
    except OSError as error:
        raise StorageError(f"{uri}: cannot be written: {error}") from error


def _link_files(stored_folder: Path, folder: Path) -> None:
    """A second name for each file; a copy where the file system has none."""
    for path in (path for path in stored_folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME):
        target = folder / path.relative_to(stored_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)
