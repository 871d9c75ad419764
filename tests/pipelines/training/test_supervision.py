"""How a training run is asked to end, and what its driver says: without Ray."""

import itertools
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.exceptions
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from maskrcnn_core.errors import ConfigError, UserError
from maskrcnn_core.training.state import TrainingState
from pipelines.cluster.capacity import Capacity, Demand
from pipelines.training import machines, supervision
from pipelines.training.bad_images import BadImages
from pipelines.training.events import CheckpointSaved, WorkersLost
from pipelines.training.progress_log import Orders, ProgressLog
from pipelines.training.supervision import Notices, result_of
from pipelines.training.worker import WorkerResult


class _Call:
    def __init__(self, function: Any) -> None:
        self.remote = function


class FakeProgress:
    """A `ProgressLog` in this process."""

    def __init__(self) -> None:
        self.log = ProgressLog(bad_images=BadImages(0.0))

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
            stop = self._progress.log.begin(step).stop_before
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
        result_of(trainer, progress, str(output), lambda: None)
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
        result_of(FakeTrainer(FakeProgress(), lost), FakeProgress(), str(tmp_path), lambda: None)
    bug = WorkerGroupError("x", {0: ValueError("a bug")})
    with pytest.raises(WorkerGroupError):
        result_of(FakeTrainer(FakeProgress(), bug), FakeProgress(), str(tmp_path), lambda: None)


def test_workers_that_are_replaced_say_why_and_mistakes_end_the_run_instead() -> None:
    progress = FakeProgress()
    notices = Notices(progress, max_failures=3)
    notices.after_exception(None, {0: ray.exceptions.OutOfMemoryError("x")})
    notices.after_exception(None, {1: RuntimeError("long\nthe last line")})
    notices.after_exception(None, {0: UserError("a mistake")})
    assert progress.log.take() == [WorkersLost("the machine ran out of memory"), WorkersLost("the last line")]


@pytest.mark.parametrize("seed", range(200))
def test_all_workers_stop_before_the_same_step(seed: int) -> None:
    """Whatever they are at when the run is asked to stop; each step needs all of them, as gradients do."""
    dice = random.Random(seed)
    log, workers = ProgressLog(bad_images=BadImages(0.0)), dice.randint(1, 4)
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
        before, answers[worker] = answers[worker], log.begin(at[worker]).stop_before
        if before is not None and at[worker] >= before:
            ended[worker] = at[worker]
        else:
            at[worker] += 1
    assert len(set(ended)) == 1
    assert ended[0] is not None


def test_new_workers_after_a_failure_stop_too() -> None:
    log = ProgressLog(bad_images=BadImages(0.0))
    assert not log.stop()  # nobody trains yet
    assert log.begin(7) == Orders(stop_before=9)
    log.restart()
    assert log.begin(3) == Orders(stop_before=5)


@pytest.mark.parametrize("seed", range(200))
def test_all_workers_save_before_the_same_steps(seed: int) -> None:
    """However soon after each other checkpoints are due, and whoever is ahead."""
    dice = random.Random(seed)
    seconds, workers = dice.choice([0.5, 3.0, 20.0]), dice.randint(1, 4)
    log, now = ProgressLog(seconds, clock=lambda: moment), dice.random()
    moment = now
    at = [dice.randint(0, 5)] * workers
    answers: list[int | None] = [None] * workers
    saved: list[list[int]] = [[] for _ in range(workers)]
    for _ in range(60 * workers):
        moment += dice.random()
        ready = [worker for worker in range(workers) if at[worker] == min(at)]
        worker = dice.choice(ready)  # a step needs all of them: nobody is more than one ahead
        before, answers[worker] = answers[worker], log.begin(at[worker]).save_before
        if before == at[worker]:
            saved[worker].append(at[worker])
        at[worker] += 1
    done = min(at)
    assert len({tuple(step for step in steps if step < done) for steps in saved}) == 1
    assert saved[0]
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(saved[0]))


def test_a_checkpoint_by_time_counts_from_the_last_one_whoever_made_it() -> None:
    log = ProgressLog(60.0, clock=lambda: now)
    now = 0.0
    assert log.begin(0) == Orders()
    now = 50.0
    log.add(CheckpointSaved(1, "last"))
    now = 109.0
    assert log.begin(1) == Orders()
    now = 110.0
    assert log.begin(2) == Orders(save_before=4)
    log.restart()
    assert log.begin(2) == Orders()
    now = 1e9
    assert ProgressLog(clock=lambda: now).begin(9) == Orders()  # by steps only


def test_losses_count_until_there_is_a_new_checkpoint() -> None:
    """Twelve losses end no run that gets on; two in a row without getting on do."""
    progress = FakeProgress()
    notices = Notices(progress, max_failures=1)
    lost = ray.exceptions.OutOfMemoryError("x")
    for step in range(1, 13):
        notices.after_exception(None, {0: lost})
        progress.log.add(CheckpointSaved(step, "last"))
    notices.after_exception(None, {0: lost})
    progress.log.add(CheckpointSaved(12, "last"))  # the same once more, after a restart: no progress
    with pytest.raises(ray.exceptions.OutOfMemoryError):
        notices.after_exception(None, {0: lost})


def test_machines_taken_with_notice_do_not_count() -> None:
    taken = WorkerHealthCheckFailedError("it does not answer", failure=ray.exceptions.RayActorError(preempted=True))
    progress = FakeProgress()
    for _ in range(9):
        Notices(progress, max_failures=0).after_exception(None, {0: RuntimeError("a peer is gone"), 1: taken})
    assert len(progress.log.take()) == 9
    with pytest.raises(RuntimeError, match="a peer"):
        Notices(progress, max_failures=0).after_exception(None, {0: RuntimeError("a peer is gone")})


def test_a_loss_too_many_is_said_as_the_loss_that_it_is(tmp_path: Path) -> None:
    """What `Notices` raises comes back from Ray Train as a failure of its controller."""
    lost = ControllerError(ray.exceptions.OutOfMemoryError("x"))
    with pytest.raises(UserError, match=r"lost: the machine ran out of memory; nothing was saved yet"):
        result_of(FakeTrainer(FakeProgress(), lost), FakeProgress(), str(tmp_path), lambda: None)


def test_a_wait_for_machines_that_is_over_ends_the_run(tmp_path: Path) -> None:
    progress = FakeProgress()

    def look() -> None:
        raise ConfigError("no machines")

    with pytest.raises(ConfigError, match="no machines"):
        result_of(FakeTrainer(progress), progress, str(tmp_path), look)


def test_missing_machines_are_looked_for_only_while_nobody_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, back = ({},), ({"CPU": 2.0},)  # type: ignore[var-annotated]
    now, nodes, told = [0.0], gone, []  # type: ignore[var-annotated]
    monkeypatch.setattr(machines, "live_nodes", lambda: nodes)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = FakeProgress()
    demand = Demand("train.num_workers", "2 workers", ({"CPU": 1.0},) * 2, "add machines")
    watch = machines.MachineWatch(demand, Capacity(back), 1.0, progress, told.append)
    watch._patience._clock = lambda: now[0]

    def looked_at(seconds: float) -> int:
        now[0] = seconds
        watch()
        return len(told)

    progress.log.restart()
    assert looked_at(10.0) == 0  # they train, whatever the cluster seems to have
    progress.log.lose()
    assert looked_at(20.0) == 1
    assert looked_at(22.0) == 1  # not yet again
    nodes = back
    assert looked_at(60.0) == 1  # they start
    nodes = gone
    assert looked_at(90.0) == 2  # a new wait, of a minute of its own
    assert looked_at(140.0) == 2
    with pytest.raises(ConfigError, match=r"need 2 CPUs, the Ray cluster has 0 after 1 minutes of waiting"):
        looked_at(151.0)
    assert "after 1 minutes" in str(progress.log.mistake())
    assert told[0] == (
        "waiting for 2 CPUs: 0 of 2 are there (0 machines); for up to 1 more minute (train.wait_minutes)"
    )
