"""The actor beside the driver that the workers of a run tell what happens, and that tells them what to do."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ray

from maskrcnn_core.errors import UserError
from maskrcnn_core.training.batches import BadImage
from pipelines.training.bad_images import BadImages
from pipelines.training.events import CheckpointSaved, ImageReplaced, TrainingEvent

_POLL_SECONDS = 0.5
_BAD_IMAGES_TOLD = 10


class Orders(NamedTuple):
    """What the workers are to do, told to each of them when it comes to a step.

    Attributes:
        stop_before: the step before which the run ends; None = it goes on.
        save_before: the step before which a checkpoint is due by time; None = none is.
    """

    stop_before: int | None = None
    save_before: int | None = None


class ProgressLog:
    """An actor's state: events not yet fetched, the bad images, the user's mistake that ended the run, if one did,
    where it is to stop or to make a checkpoint, and how often it has lost workers.

    Args:
        checkpoint_seconds: after a checkpoint until the next one is due; 0 = none is due by time.
        bad_images: that are known; None = none, and none is accepted.
        clock: seconds.

    All workers stop before the same step without waiting for each other: each announces a step when it comes to it, and
    looks at the answer to the announcement before. No worker is further than the last step announced when the run is
    asked to stop, so all of them hear of a stop two steps later in time. Checkpoints by time are agreed on alike.
    """

    def __init__(
        self,
        checkpoint_seconds: float = 0.0,
        bad_images: BadImages | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checkpoint_seconds, self._clock = checkpoint_seconds, clock
        self._bad_images = BadImages(0.0) if bad_images is None else bad_images
        self._saved_at: float | None = None
        self._save_before: int | None = None
        self._saved_step = self._losses = 0
        self._is_training = False
        self._events: list[TrainingEvent] = []
        self._mistake: UserError | None = None
        self._announced: int | None = None
        self._is_stopping = False
        self._stop_before: int | None = None

    def begin(self, step: int) -> Orders:
        """A worker comes to a step; returns before which steps the run ends or saves, if it is to."""
        self._announced = step if self._announced is None else max(self._announced, step)
        if self._is_stopping and self._stop_before is None:
            self._stop_before = self._announced + 2
        if self._is_checkpoint_due():
            self._save_before = self._announced + 2
        return Orders(self._stop_before, self._save_before)

    def _is_checkpoint_due(self) -> bool:
        now = self._clock()
        self._saved_at = now if self._saved_at is None else self._saved_at
        if not self._checkpoint_seconds or now - self._saved_at < self._checkpoint_seconds:
            return False
        assert self._announced is not None
        # A worker that has come to the step after has saved with all others: none still waits for the former order.
        if self._save_before is not None and self._announced <= self._save_before:
            return False
        self._saved_at = now
        return True

    def restart(self) -> None:
        """New workers start, the first ones or in place of others, from an earlier step."""
        self._announced = self._stop_before = self._save_before = self._saved_at = None
        self._is_training = True

    def is_training(self) -> bool:
        """Whether the first worker has started, and has not been lost since."""
        return self._is_training

    def lose(self, *, counts: bool = True) -> int:
        """Workers were lost; returns how often in a row without a new checkpoint, of the losses that count."""
        self._is_training = False
        self._losses += counts
        return self._losses

    def stop(self) -> bool:
        """The run is to end as soon as all workers can agree; returns whether there are any that train."""
        self._is_stopping = True
        if self._announced is None:
            return False
        self._stop_before = self._announced + 2
        return True

    def add(self, event: TrainingEvent) -> None:
        """Keep an event for the next `take`."""
        self._events.append(event)
        if isinstance(event, CheckpointSaved) and event.step > self._saved_step:
            self._saved_step, self._losses, self._saved_at = event.step, 0, self._clock()

    def take(self) -> list[TrainingEvent]:
        """Hand over the events since the last call."""
        events, self._events = self._events, []
        return events

    def count_bad(self, bad: Sequence[BadImage], seen: int) -> UserError | None:
        """A worker had to replace images; returns why the run must end, if it must. See `BadImages`."""
        told = len(self._bad_images)
        for image in self._bad_images.add(bad)[: max(0, _BAD_IMAGES_TOLD - told)]:
            told += 1
            self.add(ImageReplaced(image.reason, is_last=told == _BAD_IMAGES_TOLD))
        return self._bad_images.verdict(seen)

    def bad_images(self, known: int = 0) -> list[BadImage]:
        """All bad images, if there are more than are known."""
        return self._bad_images.all() if len(self._bad_images) > known else []

    def fail(self, mistake: UserError) -> None:
        """Record what no restart would mend; the first one stays."""
        self._mistake = self._mistake or mistake

    def mistake(self) -> UserError | None:
        """What `fail` recorded."""
        return self._mistake


def start_progress_log(checkpoint_seconds: float, bad_images: BadImages) -> Any:
    """A `ProgressLog` as an actor beside the driver (so that losing a worker's node does not lose it)."""
    node = ray.get_runtime_context().get_node_id()
    options = {"num_cpus": 0, "label_selector": {"ray.io/node-id": node}}
    return ray.remote(ProgressLog).options(**options).remote(checkpoint_seconds, bad_images)


@contextlib.contextmanager
def forwarded(log: Any, on_progress: Callable[[TrainingEvent], None] | None) -> Iterator[None]:
    """Call `on_progress` in a background thread for every event of the log while the block runs, and for the rest."""
    finished = threading.Event()

    def forward() -> None:
        while True:
            last = finished.wait(_POLL_SECONDS)
            for event in ray.get(log.take.remote()):
                if on_progress is not None:
                    on_progress(event)
            if last:
                return

    thread = threading.Thread(target=forward, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
