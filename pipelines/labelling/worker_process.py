"""A `LabelWorker` in a process of its own on this machine, without Ray: both sides of the connection between them.

    parent -> child     Start, then Use and Take as often as wanted
    child -> parent     Ready, then Finished for each chunk; Began (which waits for an answer) and Done for the board

The child ends when its parent does, whatever ended that: the connection is closed then.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from maskrcnn_core.errors import UserError
from pipelines.labelling.progress import Board, Work
from pipelines.labelling.worker_settings import CONCURRENT_CALLS, LoadPredictor, WorkerSettings
from pipelines.labels.chunks import Chunk, LabelFile

if TYPE_CHECKING:
    from pipelines.labelling.worker import LabelWorker

_LONGEST_LOG_LINE = 300


@dataclass(frozen=True)
class Start:
    """Load the detector."""

    load: LoadPredictor
    settings: WorkerSettings


@dataclass(frozen=True)
class Use:
    """Settings from now on, which may say more of the run, and other threads, than those of the start."""

    settings: WorkerSettings


@dataclass(frozen=True)
class Take:
    """Label a chunk."""

    chunk: Chunk


@dataclass(frozen=True)
class Ready:
    """The detector is loaded."""


@dataclass(frozen=True)
class Finished:
    """A chunk's file is written; or a mistake of the user's, or the text of another error, came of it."""

    chunk: Chunk | None
    result: LabelFile | UserError | str


@dataclass(frozen=True)
class Ended:
    """The process is no more; `how` in words, with the last line that it wrote."""

    how: str


@dataclass(frozen=True)
class Began:
    """`Board.begin`; the answer is an int."""

    key: int


@dataclass(frozen=True)
class Done:
    """`Board.done`."""

    key: int
    work: Work


Event: TypeAlias = Ready | Finished | Done | Ended
"""What a pool hears of its processes."""


class WorkerProcess:
    """The parent's side.

    Args:
        start: what to load.
        environment: variables beside those of this process.
        board: where the worker reports.
        hear: called with what happens, from a thread of this object.
    """

    def __init__(
        self,
        start: Start,
        environment: Mapping[str, str],
        board: Board,
        hear: Callable[["WorkerProcess", Event], None],
    ) -> None:
        self._board, self._hear = board, hear
        here, there = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[there.fileno()],
                env={**os.environ, "PYTHONPATH": path, **environment},
            )
        self._connection = Connection(here.detach())
        self._sending = threading.Lock()
        self.tell(start)
        self._listener = threading.Thread(target=self._listen, name="label-process", daemon=True)
        self._listener.start()

    def tell(self, message: Start | Use | Take) -> None:
        """Send a message; one to a process that is no more is lost, which `Ended` tells."""
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            return

    def close(self) -> None:
        """End the process at once, if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        self._connection.close()
        self._log.close()

    def _listen(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                if isinstance(message, Began):
                    self._answer(self._board.begin(message.key))
                elif isinstance(message, Done):
                    self._board.done(message.key, message.work)
                    self._hear(self, message)
                else:
                    self._hear(self, message)
        except (OSError, EOFError, pickle.UnpicklingError):
            self._process.kill()  # it cannot be spoken to any more
            self._hear(self, Ended(self._how_it_ended(self._process.wait())))

    def _answer(self, attempts: int) -> None:
        with self._sending:
            self._connection.send(attempts)

    def _how_it_ended(self, code: int) -> str:
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"{how}{f', its last words: {lines[-1][:_LONGEST_LOG_LINE]}' if lines else ''}"


class _Parent:
    """The child's side, as the worker's board."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self.answers: SimpleQueue[int] = SimpleQueue()

    def begin(self, key: int) -> int:
        """See `Board`; only the thread of the network asks."""
        self.tell(Began(key))
        return self.answers.get()

    def done(self, key: int, work: Work) -> None:
        """See `Board`."""
        self.tell(Done(key, work))

    def tell(self, message: Ready | Finished | Began | Done) -> None:
        """Send a message; ends the process where nobody listens."""
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            os._exit(1)


def main(handle: int) -> None:
    """Label what the parent tells until it closes the connection; does not return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes of a job
    connection = Connection(handle)
    parent = _Parent(connection)
    calls = ThreadPoolExecutor(CONCURRENT_CALLS, "chunk")
    try:
        worker = _loaded(connection.recv(), parent)
        while True:
            message = connection.recv()
            if isinstance(message, int):
                parent.answers.put(message)
            elif isinstance(message, Use):
                worker.use(message.settings)
            else:
                calls.submit(_label, worker, message.chunk, parent)
    except (OSError, EOFError):
        os._exit(0)  # whatever its threads do


def _loaded(start: Start, parent: _Parent) -> "LabelWorker":
    """The worker; where there is none, the parent is told, and ends this process."""
    from pipelines.labelling.worker import LabelWorker  # brings torch, which takes seconds

    try:
        worker = LabelWorker(start.load, start.settings, parent)
    except BaseException as error:
        parent.tell(Finished(None, _told(error)))
        raise EOFError from error
    parent.tell(Ready())
    return worker


def _label(worker: "LabelWorker", chunk: Chunk, parent: _Parent) -> None:
    try:
        parent.tell(Finished(chunk, worker.label_chunk(chunk)))
    except BaseException as error:
        parent.tell(Finished(chunk, _told(error)))


def _told(error: BaseException) -> UserError | str:
    return error if isinstance(error, UserError) else "".join(traceback.format_exception(error))


if __name__ == "__main__":
    # Messages name their types by this module's name, which is another one where it is run.
    from pipelines.labelling import worker_process

    worker_process.main(int(sys.argv[1]))
