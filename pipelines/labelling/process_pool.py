"""Worker processes of this machine: chunks handed out one by one, processes that die replaced."""

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from maskrcnn_core.errors import UserError
from pipelines.labelling.progress import Board, Work
from pipelines.labelling.signs_of_life import SignsOfLife
from pipelines.labelling.time_limits import no_progress
from pipelines.labelling.worker_process import (
    Done,
    Ended,
    Event,
    Finished,
    GivenUp,
    Ready,
    Start,
    Take,
    Use,
    WorkerProcess,
)
from pipelines.labelling.worker_settings import CONCURRENT_CALLS, LoadPredictor, WorkerSettings
from pipelines.labels.chunks import Chunk, LabelFile

_LOOK_SECONDS = 1.0

# A process that dies while it loads the network is started again, but not for ever.
_MOST_LOADING_DEATHS = 3


@dataclass
class _Place:
    """Of one process after the other.

    Attributes:
        process: the present one.
        chunks: that it works on.
        is_loaded: its detector is there.
        loading_deaths: processes that ended before that, in a row.
    """

    process: WorkerProcess
    chunks: list[Chunk] = field(default_factory=list)
    is_loaded: bool = False
    loading_deaths: int = 0


class ProcessPool:
    """Loads detectors in processes, and labels chunks by them; ends them on `close`.

    Args:
        load: of the detector.
        settings: of the workers; `use` may say more later.
        board: where they report.
        environment: variables of the process at a place (0, 1, ...).
        on_work: called with place and work for each group of images.
        longest_silence: seconds without a sign of life after which a process is ended; None = any.
    """

    def __init__(
        self,
        load: LoadPredictor,
        settings: WorkerSettings,
        board: Board,
        environment: Callable[[int], Mapping[str, str]],
        on_work: Callable[[int, Work], None] = lambda place, work: None,
        longest_silence: float | None = None,
    ) -> None:
        self._load, self._settings, self._board = load, settings, board
        self._environment, self._on_work = environment, on_work
        self._longest_silence = longest_silence
        self._signs: SignsOfLife[WorkerProcess] = SignsOfLife()
        self._places: list[_Place] = []
        self._waiting: deque[Chunk] = deque()
        self._heard: queue.SimpleQueue[tuple[WorkerProcess, Event]] = queue.SimpleQueue()
        self._fingerprint: str | None = None

    def resize(self, processes: int) -> None:
        """Start or end processes; what the ended ones had in work is begun anew by others."""
        while len(self._places) > processes:
            place = self._places.pop()
            self._waiting.extendleft(reversed(place.chunks))
            self._signs.forget(place.process)
            place.process.close()
        while len(self._places) < processes:
            self._places.append(_Place(self._started(len(self._places))))

    def use(self, settings: WorkerSettings) -> None:
        """Settings from now on; see `LabelWorker.use`."""
        self._settings = settings
        for place in self._places:
            place.process.tell(Use(settings))

    def fingerprint(self) -> str | None:
        """Of the first detector that is loaded, for which it waits; None where the device or process of one fails
        before.

        Raises:
            UserError: the checkpoint cannot be used.
            RuntimeError: as of `label`.
        """
        while self._fingerprint is None:
            self._end_silent()
            try:
                process, event = self._heard.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            self._after(process, event)
            if isinstance(event, GivenUp | Ended):
                break
        return self._fingerprint

    def label(
        self, todo: Sequence[Chunk], stalled: float, tune: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Chunk, LabelFile]]:
        """Label chunks; yields each with its file as it is written.

        Args:
            todo: in the order in which they are begun.
            stalled: seconds without a file after which the run counts as stuck; negative = never.
            tune: called after each event; may `resize` the pool.

        Raises:
            UserError: a worker met a mistake that ends the run, processes die while they load, or nothing goes on.
            RuntimeError: another error of a worker, with its traceback.
        """
        self._waiting = deque(todo)
        left, last = len(todo), time.monotonic()
        while left:
            self._hand_out()
            self._end_silent()
            try:
                process, event = self._heard.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if 0 <= stalled < time.monotonic() - last:
                    raise no_progress(stalled) from None
                continue
            finished = self._after(process, event)
            tune()
            if finished is not None:
                left, last = left - 1, time.monotonic()
                yield finished

    def close(self) -> None:
        """End all processes at once."""
        self.resize(0)

    def _hand_out(self) -> None:
        for place in self._places:
            while place.is_loaded and self._waiting and len(place.chunks) < CONCURRENT_CALLS:
                place.chunks.append(self._waiting.popleft())
                place.process.tell(Take(place.chunks[-1]))

    def _after(self, process: WorkerProcess, event: Event) -> tuple[Chunk, LabelFile] | None:
        """Take note of an event; returns a chunk that is finished."""
        index = next((index for index, place in enumerate(self._places) if place.process is process), None)
        if index is None:  # of a process that was ended
            return None
        place = self._places[index]
        self._signs.hear(process)
        match event:
            case Ready(fingerprint):
                place.is_loaded, place.loading_deaths = True, 0
                self._fingerprint = fingerprint
            case Done(work=work):
                self._on_work(index, work)
            case GivenUp():
                self._waiting.extendleft(reversed(place.chunks))
                place.chunks.clear()
            case Ended(how):
                self._replace(index, how)
            case Finished(_, UserError() as mistake):
                raise mistake
            case Finished(chunk, LabelFile() as file) if chunk is not None:
                place.chunks.remove(chunk)
                return chunk, file
            case Finished(_, text):
                raise RuntimeError(f"a worker failed:\n{text}")
        return None

    def _end_silent(self) -> None:
        if self._longest_silence is not None:
            for process in self._signs.silent(self._longest_silence):
                process.kill()

    def _replace(self, index: int, how: str) -> None:
        place = self._places[index]
        self._signs.forget(place.process)
        place.process.close()
        deaths = place.loading_deaths + (not place.is_loaded)
        if deaths >= _MOST_LOADING_DEATHS:
            raise UserError(
                f"the detector's process was lost {deaths} times while it loaded: it {how}; look for too little memory "
                "(fewer --label.num_workers need less), and give the same command again: it goes on where it stopped"
            )
        self._waiting.extendleft(reversed(place.chunks))
        self._places[index] = _Place(self._started(index), loading_deaths=deaths)

    def _started(self, index: int) -> WorkerProcess:
        start = Start(self._load, self._settings)
        return WorkerProcess(start, self._environment(index), self._board, lambda *some: self._heard.put(some))
