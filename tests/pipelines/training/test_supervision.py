"""How a training run is asked to end, and what its driver says: without Ray."""

import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.exceptions
from ray.train import WorkerGroupError

from maskrcnn_core.errors import UserError
from maskrcnn_core.training.state import TrainingState
from pipelines.training import supervision
from pipelines.training.bad_images import BadImages
from pipelines.training.events import ProgressLog, WorkersLost
from pipelines.training.supervision import Notices, result_of
from pipelines.training.worker import WorkerResult


class _Call:
    def __init__(self, function: Any) -> None:
        self.remote = function


class FakeProgress:
    """A `ProgressLog` in this process."""

    def __init__(self) -> None:
        self.log = ProgressLog(BadImages(0.0))

    def __getattr__(self, name: str) -> _Call:
        return _Call(getattr(self.log, name))


class FakeTrainer:
    """Trains until it is asked to end, or fails."""

    def __init__(self, progress: FakeProgress, error: Exception | None = None, *, is_deaf: bool = False) -> None:
        self._progress, self._error, self._is_deaf = progress, error, is_deaf
        self.entered = threading.Event()

    def fit(self) -> Any:
        if self._error is not None:
            raise self._error
        step = 0
        stop: int | None = None
        while stop is None or step < stop or self._is_deaf:
            step += 1
            stop = self._progress.log.begin(step)
            self.entered.set()
            threading.Event().wait(0.01)
        return type("Result", (), {"return_value": WorkerResult(TrainingState(step=step), 0, is_finished=False)})


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda value, timeout=None: value)
    monkeypatch.setattr(supervision, "_SAVE_SECONDS", 0.5)


def interrupted(trainer: FakeTrainer, progress: FakeProgress, output: Path) -> str:
    """What Ctrl-C makes of a run that is under way."""

    def press() -> None:
        trainer.entered.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        result_of(trainer, progress, str(output))
    return str(caught.value)


def test_workers_that_end_in_time_say_where(tmp_path: Path) -> None:
    progress = FakeProgress()
    said = interrupted(FakeTrainer(progress), progress, tmp_path)
    assert said.startswith("at step ")
    assert said.endswith("; the same command resumes there")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], "before the first checkpoint; the same command starts from the beginning"),
        ([10, 20], "after the checkpoint of step 20; the same command resumes after step 20"),
    ],
)
def test_workers_that_do_not_end_are_left(tmp_path: Path, steps: list[int], expected: str) -> None:
    for step in steps:
        folder = tmp_path / "resume" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    progress = FakeProgress()
    assert interrupted(FakeTrainer(progress, is_deaf=True), progress, tmp_path) == expected


def test_lost_workers_are_a_line_and_bugs_are_not(tmp_path: Path) -> None:
    lost = WorkerGroupError("x", {0: ray.exceptions.OutOfMemoryError("x")})
    with pytest.raises(UserError, match=r"lost: the machine ran out of memory; nothing was saved yet"):
        result_of(FakeTrainer(FakeProgress(), lost), FakeProgress(), str(tmp_path))
    bug = WorkerGroupError("x", {0: ValueError("a bug")})
    with pytest.raises(WorkerGroupError):
        result_of(FakeTrainer(FakeProgress(), bug), FakeProgress(), str(tmp_path))


def test_workers_that_are_replaced_say_why_and_mistakes_end_the_run_instead() -> None:
    progress = FakeProgress()
    notices = Notices(progress)
    notices.after_exception(None, {0: ray.exceptions.OutOfMemoryError("x")})
    notices.after_exception(None, {1: RuntimeError("long\nthe last line")})
    notices.after_exception(None, {0: UserError("a mistake")})
    assert progress.log.take() == [WorkersLost("the machine ran out of memory"), WorkersLost("the last line")]


@pytest.mark.parametrize("seed", range(200))
def test_all_workers_stop_before_the_same_step(seed: int) -> None:
    """Whatever they are at when the run is asked to stop; each step needs all of them, as gradients do."""
    dice = random.Random(seed)
    log, workers = ProgressLog(BadImages(0.0)), dice.randint(1, 4)
    at = [dice.randint(0, 5)] * workers
    answers: list[int | None] = [None] * workers
    ended: list[int | None] = [None] * workers
    moment = dice.randint(0, 30)
    for turn in range(1000):
        if turn == moment:
            log.stop()
        running = [worker for worker in range(workers) if ended[worker] is None]
        if not running:
            break
        # A worker is at most one step ahead of the others.
        ready = [worker for worker in running if at[worker] == min(at[other] for other in running)]
        worker = dice.choice(ready)
        before, answers[worker] = answers[worker], log.begin(at[worker])
        if before is not None and at[worker] >= before:
            ended[worker] = at[worker]
        else:
            at[worker] += 1
    assert len(set(ended)) == 1
    assert ended[0] is not None


def test_new_workers_after_a_failure_stop_too() -> None:
    log = ProgressLog(BadImages(0.0))
    assert not log.stop()  # nobody trains yet
    assert log.begin(7) == 9
    log.restart()
    assert log.begin(3) == 5
