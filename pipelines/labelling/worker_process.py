"""A `LabelWorker` in a process of its own on this machine, without Ray: both sides of the connection between them.

    parent -> child     Start, then Use and Take as often as wanted
    child -> parent     Ready or GivenUp, then Finished for each chunk; Alive every few seconds; for the board Ask
                        (Answer follows) and Done

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
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from maskrcnn_core.errors import UserError
from pipelines.labelling.device_board import BrokenDetectorError, too_many_given_up
from pipelines.labelling.device_faults import Standing, this_device
from pipelines.labelling.progress import Board, Work
from pipelines.labelling.signs_of_life import give_signs
from pipelines.labelling.worker_settings import CONCURRENT_CALLS, LoadPredictor, WorkerSettings
from pipelines.labels.chunks import Chunk, LabelFile

if TYPE_CHECKING:
    from pipelines.labelling.worker import LabelWorker

_LONGEST_LOG_LINE = 300
_EXIT_BROKEN = 125


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
    """The detector is loaded; its fingerprint."""

    fingerprint: str


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
class Alive:
    """A sign of life; see `signs_of_life`."""


@dataclass(frozen=True)
class GivenUp:
    """The device of the process gets no more work."""


@dataclass(frozen=True)
class Ask:
    """A method of `Board` that returns something, and what it is called with."""

    method: Literal["begin", "join", "fault"]
    arguments: tuple[object, ...]


@dataclass(frozen=True)
class Answer:
    """What it returned."""

    value: object


@dataclass(frozen=True)
class Done:
    """`Board.done`."""

    key: int
    work: Work


Event: TypeAlias = Ready | Alive | GivenUp | Finished | Done | Ended
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
                [sys.executable, "-c", f"from {__name__} import main; main({there.fileno()})"],
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

    def tell(self, message: Start | Use | Take | Answer) -> None:
        """Send a message; one to a process that is no more is lost, which `Ended` tells."""
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            return

    def kill(self) -> None:
        """End the process at once; `Ended` follows."""
        self._process.kill()

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
                if isinstance(message, Ask):
                    self.tell(Answer(getattr(self._board, message.method)(*message.arguments)))
                elif isinstance(message, Done):
                    self._board.done(message.key, message.work)
                    self._hear(self, message)
                else:
                    self._hear(self, message)
        except (OSError, EOFError, pickle.UnpicklingError):
            self._process.kill()  # it cannot be spoken to any more
            self._hear(self, Ended(self._how_it_ended(self._process.wait())))

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
        self._asking = threading.Lock()
        self.answers: SimpleQueue[Any] = SimpleQueue()

    def begin(self, key: int) -> int:
        """See `Board`."""
        return int(self._asked(Ask("begin", (key,))))

    def join(self, device: str) -> Standing:
        """See `Board`."""
        standing: Standing = self._asked(Ask("join", (device,)))
        return standing

    def fault(self, device: str, cause: int, reason: str) -> Standing:
        """See `Board`."""
        standing: Standing = self._asked(Ask("fault", (device, cause, reason)))
        return standing

    def done(self, key: int, work: Work) -> None:
        """See `Board`."""
        self.tell(Done(key, work))

    def _asked(self, question: Ask) -> Any:
        with self._asking:
            self.tell(question)
            return self.answers.get()

    def tell(self, message: Ready | Alive | GivenUp | Finished | Ask | Done) -> None:
        """Send a message; ends the process where nobody listens."""
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            os._exit(1)


class _Child:
    """The child's side of the work."""

    def __init__(self, parent: _Parent) -> None:
        self._parent = parent
        self._lock = threading.Lock()
        self._worker: LabelWorker | None = None
        self._settings: WorkerSettings | None = None

    def load(self, start: Start) -> None:
        """Load the detector and say so; or that there is none, upon which the parent ends this process."""
        from pipelines.labelling.worker import LabelWorker  # brings torch, which takes seconds

        try:
            standing = self._parent.join(this_device())
            if standing.ends_run:
                raise too_many_given_up(standing)
            if standing.is_given_up:
                self._parent.tell(GivenUp())
                return
            worker = LabelWorker(start.load, start.settings, self._parent)
        except BrokenDetectorError:
            os._exit(_EXIT_BROKEN)
        except BaseException as error:
            self._parent.tell(Finished(None, _told(error)))
            return
        with self._lock:
            self._worker = worker
            if self._settings is not None:
                worker.use(self._settings)
        self._parent.tell(Ready(worker.fingerprint))

    def use(self, settings: WorkerSettings) -> None:
        """Settings from now on, or from when there is a detector."""
        with self._lock:
            self._settings = settings
            if self._worker is not None:
                self._worker.use(settings)

    def label(self, chunk: Chunk) -> None:
        """Label a chunk and say so."""
        assert self._worker is not None  # only then is there a chunk
        try:
            self._parent.tell(Finished(chunk, self._worker.label_chunk(chunk)))
        except BrokenDetectorError:
            os._exit(_EXIT_BROKEN)  # the parent starts another process
        except BaseException as error:
            self._parent.tell(Finished(chunk, _told(error)))


def main(handle: int) -> None:
    """Label what the parent tells until it closes the connection; does not return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes of a job
    connection = Connection(handle)
    parent = _Parent(connection)
    give_signs(lambda: parent.tell(Alive()))
    child = _Child(parent)
    calls = ThreadPoolExecutor(CONCURRENT_CALLS, "chunk")
    try:
        while True:
            match connection.recv():
                case Start() as start:
                    calls.submit(child.load, start)
                case Use(settings):
                    child.use(settings)
                case Take(chunk):
                    calls.submit(child.label, chunk)
                case Answer(value):
                    parent.answers.put(value)
    except (OSError, EOFError):
        os._exit(0)  # whatever its threads do


def _told(error: BaseException) -> UserError | str:
    return error if isinstance(error, UserError) else "".join(traceback.format_exception(error))
