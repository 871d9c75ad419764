"""How long work may take before it counts as hung: a group of images in the detector, and a run without a new file."""

import statistics
from collections import deque

from maskrcnn_core.errors import UserError
from pipelines.labelling.config import LabelConfig
from pipelines.labelling.planning import most_chunk_rows

# A group of so many times its usual time is as slow as no image or busy machine explains.
_TIMES_MEDIAN = 10.0
_LEAST_GROUPS = 3
_GROUPS_KEPT = 31

# The first groups load kernels and search for the fastest, and nobody knows yet how long one takes.
_START_SECONDS = 1800.0


class GroupTimes:
    """Time limits of groups from the times of those before, in one process.

    Args:
        image_timeout: seconds that one image may take; 0 = no limit for anything.
    """

    def __init__(self, image_timeout: float) -> None:
        self._image_timeout = image_timeout
        self._per_image: deque[float] = deque(maxlen=_GROUPS_KEPT)

    def took(self, images: int, seconds: float) -> None:
        """A group is finished."""
        self._per_image.append(seconds / images)

    def limit(self, images: int) -> float | None:
        """Seconds for a group of images: one of them may take as long as any may, the others some times the median.

        Never more than if each took all the time that it may; None = no limit.
        """
        if not self._image_timeout:
            return None
        most = self._image_timeout * images
        if len(self._per_image) < _LEAST_GROUPS:
            return min(most, max(_START_SECONDS, self._image_timeout))
        return min(most, self._image_timeout + _TIMES_MEDIAN * images * statistics.median(self._per_image))


def no_progress(stalled: float) -> UserError:
    """That no file was finished for so many seconds."""
    return UserError(
        f"label.stalled_minutes: no label file was finished for {stalled / 60.0:g} minutes; look for workers that "
        "hang and machines that did not come back, and give the same command again: it goes on where it stopped"
    )


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
