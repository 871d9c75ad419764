import threading
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.training.trackers import background
from pipelines.training.trackers.background import BackgroundTracker
from pipelines.training.trackers.tracker import Outcome


class Notebook:
    """Writes down what it is told; at some steps it fails."""

    def __init__(self, bad_steps: tuple[int, ...] = ()) -> None:
        self.told: list[object] = []
        self._bad_steps = bad_steps

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if step in self._bad_steps:
            raise ConnectionError(f"no answer at {step}\nand much more")
        self.told.append((step, dict(values)))

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        self.told.append((step, name, pixels.shape))

    def close(self, outcome: Outcome, results: Mapping[str, float]) -> None:
        self.told.append((outcome, dict(results)))


def test_everything_arrives_in_order() -> None:
    notebook, failures = Notebook(), list[str]()
    tracker = BackgroundTracker(lambda: notebook, failures.append)
    for step in range(100):
        tracker.scalars({"loss": step / 2}, step)
    tracker.picture("sheet", np.zeros((2, 3, 3), np.uint8), 100)
    tracker.close("finished", {"best_score": 0.5})
    assert notebook.told == [
        *((step, {"loss": step / 2}) for step in range(100)),
        (100, "sheet", (2, 3, 3)),
        ("finished", {"best_score": 0.5}),
    ]
    assert failures == []


def test_a_failure_is_told_once_and_the_rest_arrives() -> None:
    notebook, failures = Notebook(bad_steps=(1, 2)), list[str]()
    tracker = BackgroundTracker(lambda: notebook, failures.append)
    for step in range(4):
        tracker.scalars({}, step)
    tracker.close("interrupted", {})
    assert notebook.told == [(0, {}), (3, {}), ("interrupted", {})]
    assert failures == ["no answer at 1"]


@pytest.mark.parametrize("error", [OSError(), SystemExit("no key"), RuntimeError("no server")])
def test_a_tracker_that_cannot_start_is_told_once(error: BaseException) -> None:
    def start() -> Notebook:
        raise error

    failures: list[str] = []
    tracker = BackgroundTracker(start, failures.append)
    for step in range(3):
        tracker.scalars({}, step)
    tracker.close("finished", {})
    assert failures == [str(error) or "OSError"]


def test_a_slow_tracker_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_MOST_WAITING", 2)
    monkeypatch.setattr(background, "_CLOSE_SECONDS", 0.1)
    answers, failures = threading.Event(), list[str]()
    notebook = Notebook()

    def start() -> Notebook:
        answers.wait(60)
        return notebook

    tracker = BackgroundTracker(start, failures.append)
    for step in range(5):
        tracker.scalars({}, step)
    tracker.close("finished", {})
    assert failures == ["2 reports wait for it, further ones are left out"]
    answers.set()
