"""The curves of a run: OUTPUT/curves.json, and the picture of them that people look at, OUTPUT/curves.svg.

Kept by the process that started the run, from the events that it gets anyway: workers never wait for it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from maskrcnn_core.errors import StorageError
from maskrcnn_core.printable import printable
from maskrcnn_core.report.training_curves import TrainingCurves, curves_svg
from pipelines import storage
from pipelines.storage.run_files import json_object_bytes, read_json_object
from pipelines.training.events import (
    CheckpointSaved,
    DataNote,
    SchedulePlanned,
    StepReport,
    TrainingEvent,
    TrainingStarted,
    ValidationReport,
)

_MOST_POINTS = 2000
_SCORES = {
    "segm/AP": "mask AP",
    "keypoints/AP": "keypoint AP",
    "bbox/AP": "box AP",
    "proposals/AR@1000": "AR@1000",
    "proposals/AR@100": "AR@100",
}
_MOST_SCORES = 3


@dataclass(frozen=True)
class StepPoint:
    """Means over the steps since the point before.

    Attributes:
        step: steps done.
        losses: by name.
        learning_rate: of the last step.
        images_per_second: over all workers.
    """

    step: int
    losses: dict[str, float]
    learning_rate: float
    images_per_second: float


@dataclass(frozen=True)
class ValidationPoint:
    """One validation.

    Attributes:
        step: steps done.
        score: the number that chooses; None where it is undefined.
        metrics: by name.
        losses: by name.
    """

    step: int
    score: float | None
    metrics: dict[str, float]
    losses: dict[str, float]


@dataclass
class CurvePoints:
    """What is kept, in the order of the steps. A long run has its neighbours joined, so that a picture stays small."""

    steps: list[StepPoint] = field(default_factory=list)
    validations: list[ValidationPoint] = field(default_factory=list)

    def add(self, event: TrainingEvent) -> None:
        """Take what is drawn of an event."""
        if isinstance(event, TrainingStarted):  # what was done after the checkpoint comes again
            self.steps = [point for point in self.steps if point.step <= event.step]
        elif isinstance(event, StepReport):
            self.steps.append(StepPoint(event.step, event.losses, event.learning_rate, event.images_per_second))
            if len(self.steps) > _MOST_POINTS:
                self.steps = _joined(self.steps)
        elif isinstance(event, ValidationReport):
            others = [point for point in self.validations if point.step != event.step]
            mine = ValidationPoint(event.step, event.score, event.metrics, event.losses)
            self.validations = sorted([*others, mine], key=lambda point: point.step)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the highest score, the first of equals."""
        scored = [(point.step, point.score) for point in self.validations if point.score is not None]
        return max(scored, key=lambda point: (point[1], -point[0]), default=None)


def _joined(points: Sequence[StepPoint]) -> list[StepPoint]:
    """Each two neighbours as one, at the later step."""
    pairs = zip(points[::2], points[1::2], strict=False)
    joined = [
        StepPoint(
            later.step,
            {name: (earlier.losses.get(name, value) + value) / 2 for name, value in later.losses.items()},
            later.learning_rate,
            (earlier.images_per_second + later.images_per_second) / 2,
        )
        for earlier, later in pairs
    ]
    return joined + list(points[2 * len(joined) :])


class CurveKeeper:
    """Keeps and draws the curves of a run as its events arrive.

    Args:
        output: folder of the run; what an earlier start left there goes on.
        plan: of the run.
        tell: called once with a note where the files cannot be written; training goes on.
    """

    def __init__(self, output: str, plan: SchedulePlanned, tell: Callable[[TrainingEvent], None]) -> None:
        self._output, self._plan, self._tell = output, plan, tell
        self._points = _read(output)
        self._has_failed = False

    def add(self, event: TrainingEvent) -> None:
        """Take an event; draw where it is a validation or a checkpoint."""
        self._points.add(event)
        if isinstance(event, ValidationReport | CheckpointSaved):
            self.draw()

    def draw(self) -> None:
        """Write both files; nothing where there is nothing to show."""
        if not self._points.steps and not self._points.validations:
            return
        try:
            kept = json_object_bytes(dataclasses.asdict(self._points))
            storage.write_bytes_atomically(_uri(self._output, "json"), kept)
            picture = curves_svg(_drawn(self._points, self._plan, self._output))
            storage.write_bytes_atomically(picture_uri(self._output), picture.encode())
        except (OSError, StorageError) as error:
            if not self._has_failed:
                self._has_failed = True
                self._tell(DataNote(f"the curves of the run cannot be written: {error}"))


def picture_uri(output: str) -> str:
    """Where the picture lies."""
    return _uri(output, "svg")


def _uri(output: str, ending: str) -> str:
    return storage.join(output, f"curves.{ending}")


def _read(output: str) -> CurvePoints:
    """What an earlier start kept; nothing where that is damaged, because the run does not depend on it."""
    uri = _uri(output, "json")
    try:
        if not storage.exists(uri):
            return CurvePoints()
        document = read_json_object(uri, {"steps": list, "validations": list}, "delete it")
        return CurvePoints(
            [StepPoint(**point) for point in document["steps"]],
            [ValidationPoint(**point) for point in document["validations"]],
        )
    except (StorageError, OSError, TypeError):
        return CurvePoints()


def _drawn(points: CurvePoints, plan: SchedulePlanned, output: str) -> TrainingCurves:
    last = max([point.step for point in points.steps] + [point.step for point in points.validations])
    best = points.best
    said = f"step {last:,} of {plan.steps:,}, epoch {plan.epochs_of(last):.3g} of {plan.epochs:.3g}"
    metrics = [name for name in _SCORES if any(name in point.metrics for point in points.validations)][:_MOST_SCORES]
    chosen = _SCORES[metrics[0]] if metrics else ""
    if best is not None:
        said += f"; best {chosen} {best[1]:.3f} at step {best[0]:,}"
    return TrainingCurves(
        title=printable(output.rstrip("/").rsplit("/", 1)[-1]),
        subtitle=said,
        steps=max(plan.steps, last),
        losses=_by_name([(point.step, point.losses) for point in points.steps]),
        validation_losses=_by_name([(point.step, point.losses) for point in points.validations]),
        scores={
            _SCORES[name]: [(point.step, point.metrics[name]) for point in points.validations if name in point.metrics]
            for name in metrics
        },
        best=best,
        learning_rate=[(point.step, point.learning_rate) for point in points.steps],
        images_per_second=[(point.step, point.images_per_second) for point in points.steps],
    )


def _by_name(values: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for step, named in values:
        for name, value in named.items():
            points.setdefault(name, []).append((step, value))
    return points
