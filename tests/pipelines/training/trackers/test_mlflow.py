from pathlib import Path

import numpy as np
import pytest

from pipelines.training.trackers.mlflow import MlflowTracker, metric_name
from pipelines.training.trackers.tracker import TrackedRun


def tracked(output: Path, identity: str = "") -> TrackedRun:
    settings = {"train": {"steps": 6, "decay_steps": [4, 5]}, "data": {"train": {"images": "x" * 900}}}
    return TrackedRun("one", str(output), settings, identity)


@pytest.fixture
def _mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is an extra: python -m pip install mlflow-skinny")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


@pytest.mark.usefixtures("_mlflow")
def test_a_run_in_files_beside_it(tmp_path: Path) -> None:
    import mlflow

    tracker = MlflowTracker(tracked(tmp_path))
    tracker.scalars({f"validation_AP_of/{number}": number / 200 for number in range(150)}, 3)
    tracker.scalars({"loss/total": 0.5}, 2)
    tracker.scalars({"loss/total": 0.25}, 4)
    tracker.picture("validation/pictures", np.zeros((2, 3, 3), np.uint8), 3)
    tracker.close("finished", {"best_score": 0.5, "best_step": 3})

    run_id = tracker.identity.partition("@")[0]
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "one")
    assert run.data.params["train.steps"] == "6"
    assert run.data.params["train.decay_steps"] == "[4, 5]"
    assert len(run.data.params["data.train.images"]) == 500
    assert [(entry.step, entry.value) for entry in client.get_metric_history(run_id, "loss/total")] == [
        (2, 0.5),
        (4, 0.25),
    ]
    assert len(run.data.metrics) == 150 + 1 + 2
    assert run.data.metrics["best_score"] == 0.5
    assert [item.path for item in client.list_artifacts(run_id, "validation")] == ["validation/pictures-00000003.png"]


@pytest.mark.usefixtures("_mlflow")
def test_a_resumed_run_goes_on_in_the_same_place(tmp_path: Path) -> None:
    import mlflow

    first = MlflowTracker(tracked(tmp_path))
    first.scalars({"loss": 1.0}, 2)
    first.close("interrupted", {})
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    run_id = first.identity.partition("@")[0]
    assert client.get_run(run_id).info.status == "KILLED"

    second = MlflowTracker(tracked(tmp_path, first.identity))
    assert second.identity == first.identity
    assert client.get_run(run_id).info.status == "RUNNING"
    second.scalars({"loss": 0.5}, 4)
    second.close("finished", {})
    assert [entry.step for entry in client.get_metric_history(run_id, "loss")] == [2, 4]


@pytest.mark.usefixtures("_mlflow")
def test_another_server_has_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = MlflowTracker(tracked(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    second = MlflowTracker(tracked(tmp_path, first.identity))
    assert second.identity != first.identity
    assert (tmp_path / "elsewhere").is_dir()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss/rpn_box", "loss/rpn_box"),
        ("validation_AP_of/door (old)", "validation_AP_of/door _old_"),
        ("validation_AP_of/../x", "validation_AP_of/_/x"),
        ("validation_AP_of//", "validation_AP_of/_/_"),
        ("validation_AP_of/é 50%", "validation_AP_of/é 50_"),
    ],
)
def test_names_that_mlflow_takes(name: str, expected: str) -> None:
    assert metric_name(name) == expected
