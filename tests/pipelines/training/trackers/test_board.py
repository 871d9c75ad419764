import importlib.util
from pathlib import Path

import pytest

from maskrcnn_core.errors import ConfigError, StorageError
from pipelines.training.config import TrainConfig, TrainRun
from pipelines.training.trackers import availability, board
from pipelines.training.trackers.board import open_board
from pipelines.training.trackers.tracker import TrackedRun
from tests.pipelines.training.trackers.test_background import Notebook


class Named(Notebook):
    """Takes the name that it is given, or a new one."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__()
        self.run = run
        self.identity = run.identity or "first"
        MADE.append(self)


MADE: list[Named] = []


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    MADE.clear()
    monkeypatch.setattr(board, "MlflowTracker", Named)
    monkeypatch.setattr(board, "require_installed", lambda name: None)


def test_every_tracker_hears_the_same_and_keeps_its_name(tmp_path: Path) -> None:
    run = TrainRun(output=str(tmp_path / "run"), train=TrainConfig(trackers=("mlflow", "tensorboard")))
    for start in (0, 3):
        opened = open_board(run, start, {}, lambda name, reason: pytest.fail(reason))
        opened.scalars({"loss": 0.5}, start + 1)
        opened.store()
        opened.conclude("finished", {"best_score": 0.25})
        opened.close()
    first, second = MADE
    assert first.told == [(1, {"loss": 0.5}), ("finished", {"best_score": 0.25})]
    assert (first.run.name, first.run.identity) == ("run", "")
    assert second.run.identity == "first"
    assert first.run.settings["train"]["steps"] == run.train.steps
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2


def test_a_run_that_does_not_conclude_has_failed(tmp_path: Path) -> None:
    run = TrainRun(output=str(tmp_path), train=TrainConfig(trackers=("mlflow",)))
    open_board(run, 0, {}, lambda name, reason: pytest.fail(reason)).close()
    assert MADE[0].told == [("failed", {})]
    assert not (tmp_path / "tensorboard").exists()


def test_no_tracker_at_all(tmp_path: Path) -> None:
    run = TrainRun(output=str(tmp_path / "run"), train=TrainConfig(trackers=()))
    opened = open_board(run, 0, {}, lambda name, reason: pytest.fail(reason))
    opened.scalars({"loss": 0.5}, 1)
    opened.store()
    opened.close()
    assert not (tmp_path / "run").exists()


def test_a_damaged_name_is_a_line(tmp_path: Path) -> None:
    run = TrainRun(output=str(tmp_path), train=TrainConfig(trackers=("mlflow",)))
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "mlflow.json").write_text("{")
    with pytest.raises(
        StorageError, match=r"mlflow\.json: is no JSON .*; delete it: the tracker then starts a new run"
    ):
        open_board(run, 0, {}, lambda name, reason: None)


def test_a_worker_without_the_package_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "require_installed", availability.require_installed)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = TrainRun(output=str(tmp_path), train=TrainConfig(trackers=("wandb",)))
    with pytest.raises(ConfigError, match=r"wandb is not installed on "):
        open_board(run, 0, {}, lambda name, reason: None)
