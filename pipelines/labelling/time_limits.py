"""How long work may take before it counts as hung: images in the detector, and a run without a new file."""

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable

from maskrcnn_core.errors import UserError
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.planning import most_chunk_rows

# So many times the usual time is as slow as no image or busy machine explains.
_TIMES_MEDIAN = 10.0
_LEAST_BATCHES = 3
_BATCHES_KEPT = 31

_LOOK_SECONDS = 0.1

# The first batches load kernels and search for the fastest, and nobody knows yet how long one takes.
_START_SECONDS = 1800.0


class BatchTimes:
    """Time limits of a process's detector from the times of the batches before.

    Args:
        image_timeout: seconds that one image may take; 0 = no limit for anything.
    """

    def __init__(self, image_timeout: float) -> None:
        self._image_timeout = image_timeout
        self._per_image: deque[float] = deque(maxlen=_BATCHES_KEPT)

    def took(self, images: int, seconds: float) -> None:
        """A batch is finished."""
        self._per_image.append(seconds / images)

    def limit(self, images: int) -> float | None:
        """Seconds in which one of some images has to be finished: one of them may take as long as any may, the others
        some times the median.

        Never more than if each took all the time that it may; None = no limit.
        """
        if not self._image_timeout:
            return None
        most = self._image_timeout * images
        if len(self._per_image) < _LEAST_BATCHES:
            return min(most, max(_START_SECONDS, self._image_timeout))
        return min(most, self._image_timeout + _TIMES_MEDIAN * images * statistics.median(self._per_image))


def no_progress(stalled: float) -> UserError:
    """That no file was finished for so many seconds."""
    return UserError(
        f"label.stalled_minutes: no label file was finished for {stalled / 60.0:g} minutes; look for workers that "
        "hang and machines that did not come back, and give the same command again: it goes on where it stopped"
    )


class Watch:
    """Ends the process where the detector gives nothing back for too long: nothing else stops code that hangs in a
    library. The board then shows which images it was busy with, as after any other crash.

    It looks on inside a `with` block, from a thread of its own.

    Args:
        times: of the detector's batches.
        is_busy: whether the detector has images to give back.
        end: ends the process.
    """

    def __init__(self, times: BatchTimes, is_busy: Callable[[], bool], end: Callable[[], None]) -> None:
        self._times, self._is_busy, self._end_process = times, is_busy, end
        # Counted in two threads, each of which writes one of them.
        self._expected = self._come = 0
        self._since = 0.0
        self._end = threading.Event()

    def expect(self, images: int) -> None:
        """So many more images will be given to the detector."""
        self._expected += images

    def begins(self) -> None:
        """The detector has had nothing to do, and gets its next image."""
        self._since = time.monotonic()

    def came(self, images: int) -> None:
        """A batch came back."""
        now = time.monotonic()
        self._times.took(images, now - self._since)
        self._come += images
        self._since = now

    def forget(self) -> None:
        """Nothing is expected any more."""
        self._expected = self._come = 0

    def __enter__(self) -> None:
        self._end = threading.Event()
        threading.Thread(target=self._look, args=(self._end,), name="watch", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._end.set()

    def _look(self, end: threading.Event) -> None:
        while not end.wait(_LOOK_SECONDS):
            if self._is_busy() and self._is_late():
                end.set()
                self._end_process()

    def _is_late(self) -> bool:
        limit = self._times.limit(max(1, self._expected - self._come))
        return limit is not None and time.monotonic() - self._since > limit


def stalled_seconds(label: LabelConfig, longest_chunk: int) -> float:
    """How long no file of a run may be finished: as the setting says, for files of the usual size and one pass over an
    image; in proportion longer for larger files and more passes.

    Args:
        label: with `use_gpu` chosen.
        longest_chunk: images of the largest file.

    Returns:
        Seconds; -1 = no limit, as Ray Data has it.
    """
    if not label.stalled_minutes:
        return -1.0
    passes = max(1, len(label.test_short_sides)) * (2 if label.test_flip else 1)
    return 60.0 * label.stalled_minutes * max(1.0, longest_chunk / most_chunk_rows(label)) * passes
