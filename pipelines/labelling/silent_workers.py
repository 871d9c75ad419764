"""Ends the workers of a cluster that stand still; Ray starts others in their place."""

import threading
from contextlib import suppress

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.labelling.remote_board import RemoteBoard
from pipelines.labelling.signs_of_life import SIGN_SECONDS, ProcessId, end_process


class SilentWorkers:
    """Looks for them while the block runs, from a thread of its own.

    Args:
        board: of the run.
        longest: seconds of silence that are suffered; None = any.
    """

    def __init__(self, board: RemoteBoard, longest: float | None) -> None:
        self._board, self._longest = board, longest
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="silent-workers", daemon=True)

    def __enter__(self) -> None:
        if self._longest is not None:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._longest is not None:
            self._thread.join()

    def _look(self) -> None:
        assert self._longest is not None
        while not self._stop.wait(SIGN_SECONDS):
            with suppress(Exception):  # a board or a node that does not answer now is asked again
                for process in self._board.silent(self._longest):
                    _end(process)


def _end(process: ProcessId) -> None:
    there = NodeAffinitySchedulingStrategy(process.node, soft=False)
    ray.remote(num_cpus=0, max_retries=0)(end_process).options(scheduling_strategy=there).remote(process)
