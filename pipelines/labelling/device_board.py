"""A worker's view of the board: it knows the device that it works on, and tells of its faults."""

import os
import threading

from maskrcnn_core.errors import UserError
from pipelines.labelling.device_faults import MOST_FAULTS, Standing, this_device
from pipelines.labelling.progress import Board, Work

_EXIT_TIMED_OUT = 124
_REPORT_SECONDS = 30.0


class BrokenDetectorError(Exception):
    """The detector of this process works on nothing any more."""


class BoardOfDevice:
    """The board, for work on this process's device."""

    def __init__(self, board: Board) -> None:
        self._board, self._device = board, this_device()

    def begin(self, key: int) -> int:
        """See `Board`."""
        return self._board.begin(key)

    def forget(self, key: int) -> None:
        """Work that was begun is nobody's any more: it has ended no process."""
        self._board.done(key, Work())

    def done_alone(self, key: int, *, works: bool) -> None:
        """An image that was tried alone is finished; its group is counted with its last image."""
        self._board.done(key, Work(device=self._device if works else ""))

    def done(self, key: int, images: int, detections: int, failed: int, seconds: tuple[float, float]) -> None:
        """A group is finished; seconds busy and waited."""
        self._board.done(key, Work(images, detections, failed, *seconds, self._device))

    def broken(self, reason: str) -> Exception:
        """What to raise where the detector works on nothing; the process is to end."""
        standing = self._board.fault(self._device, os.getpid(), reason)
        return too_many_given_up(standing) if standing.ends_run else BrokenDetectorError(reason)

    def end_hanging(self, key: int) -> None:
        """Say so and end the process: nothing else stops code that hangs in a library.

        Args:
            key: what it hangs with, of `begin`.
        """
        last_resort = threading.Timer(_REPORT_SECONDS, os._exit, (_EXIT_TIMED_OUT,))
        last_resort.daemon = True
        last_resort.start()
        self._board.fault(self._device, key, "it gave nothing back for too long (label.image_timeout)")
        os._exit(_EXIT_TIMED_OUT)


def too_many_given_up(standing: Standing) -> UserError:
    """That the run ends, and for the fault of which devices."""
    return UserError(
        f"the detector works on too few devices; given up after {MOST_FAULTS} processes each: {standing.given_up}; "
        "mend or replace these machines, and give the same command again: it goes on where it stopped"
    )
