"""What Ray Train's callbacks get to see of a run."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray.train

from maskrcnn_core.errors import ConfigError
from pipelines.cluster import connection
from pipelines.cluster.config import ClusterConfig
from pipelines.training.config import TrainRun
from pipelines.training.events import StepReport, TrainingEvent, ValidationReport
from pipelines.training.ray_reports import RayReports, named_callbacks
from pipelines.training.run import train
from tests.pipelines.training.test_run import small_run, write_data

Sent = list[dict[str, float]]


@dataclass(frozen=True)
class Lonely:
    """A job of one worker."""

    def agree(self, decision: bool) -> bool:
        return decision


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    reports: Sent = []
    monkeypatch.setattr(ray.train, "report", reports.append)
    return reports


def reports_of(job: Any) -> RayReports:
    return RayReports(job)


def test_only_what_matters_goes_without_delay(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    reports = reports_of(Lonely())
    for step in range(1, 31):  # a second each
        now[0] += 1.0
        reports.add({"loss/total": float(step)})
        reports.send(step, at_once=step == 7)
    assert [report["step"] for report in sent] == [7, 17, 27]
    assert [report["loss/total"] for report in sent] == [7.0, 17.0, 27.0]


def test_older_numbers_stay_until_there_are_newer_ones(sent: Sent) -> None:
    reports = reports_of(Lonely())
    reports.add({"validation/bbox/AP": 0.25, "validation/step": 2})
    reports.send(2, at_once=True)
    reports.add({"loss/total": 0.5})
    reports.send(4, at_once=True)
    reports.add({"validation/bbox/AP": 0.5, "validation/step": 6})
    reports.send(6, at_once=True)
    assert sent == [
        {"step": 2, "validation/bbox/AP": 0.25, "validation/step": 2},
        {"step": 4, "validation/bbox/AP": 0.25, "validation/step": 2, "loss/total": 0.5},
        {"step": 6, "validation/bbox/AP": 0.5, "validation/step": 6, "loss/total": 0.5},
    ]


class Recorder(ray.train.UserCallback):  # type: ignore[misc] # Ray has no types here
    """Writes the first worker's reports beside the run."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        assert checkpoint is None
        with Path(run_context.run_config.storage_path).with_name("reports.jsonl").open("a") as file:
            file.write(json.dumps(metrics[0]) + "\n")


def test_callbacks_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TRAIN_CALLBACKS", raising=False)
    assert named_callbacks() == []
    monkeypatch.setenv("RAY_TRAIN_CALLBACKS", f"json.JSONDecoder, {Recorder.__module__}.Recorder,")
    (callback,) = named_callbacks()  # the other one is Ray Train's to judge
    assert isinstance(callback, Recorder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module.Class", "'no_such_module.Class' cannot be imported"),
        ("json.Nothing", "'json.Nothing' cannot be imported"),
        ("Recorder", "'Recorder' cannot be imported"),
        ("json.dumps", "'json.dumps' is <function dumps .*, expected a class"),
    ],
)
def test_names_that_are_no_callback(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_CALLBACKS", name)
    with pytest.raises(ConfigError, match=f"RAY_TRAIN_CALLBACKS: {message}"):
        named_callbacks()


@pytest.mark.ray
@pytest.mark.slow  # two runs
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # see test_run
def test_callbacks_get_losses_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_CALLBACKS", f"{Recorder.__module__}.{Recorder.__qualname__}")
    source = write_data(tmp_path / "data")
    with connection.connect(ClusterConfig(num_cpus=4)):
        for validate_in in ("workers", "task"):
            folder = tmp_path / validate_in
            folder.mkdir()
            found, events = recorded(small_run(folder / "run", source, validate_in=validate_in))
            last = [event for event in events if isinstance(event, StepReport)][-1]
            validation = [event for event in events if isinstance(event, ValidationReport)][-1]
            assert [report["step"] for report in found][:2] == [3, 6]
            assert found[-1]["step"] == found[-1]["validation/step"] == 6
            assert {name: found[-1][f"loss/{name}"] for name in last.losses} == last.losses
            assert found[-1]["train/learning_rate"] == last.learning_rate
            assert {name: found[-1][f"validation/{name}"] for name in validation.metrics} == validation.metrics


def recorded(run: TrainRun) -> tuple[list[dict[str, float]], list[TrainingEvent]]:
    events: list[TrainingEvent] = []
    train(run, events.append)
    lines = Path(run.output).with_name("reports.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], events
