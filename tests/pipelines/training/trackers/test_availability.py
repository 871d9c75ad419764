import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_core.errors import ConfigError
from pipelines.training.config import TrainConfig, TrainRun
from pipelines.training.run import train
from pipelines.training.trackers.availability import check_trackers


def run_with(output: str, *trackers: Any) -> TrainRun:
    return TrainRun(output=output, train=TrainConfig(trackers=trackers))


@pytest.fixture(autouse=True)
def _bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables, no key of this machine's user, and every package."""
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize(("name", "package"), [("mlflow", "mlflow-skinny"), ("wandb", "wandb")])
def test_a_missing_package_is_named_before_anything_starts(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    output = tmp_path / "run"
    for trackers in ((name,), ("tensorboard", name)):
        with pytest.raises(ConfigError, match=rf"train\.trackers: {name} is not .* -m pip install {package} "):
            train(run_with(str(output), *trackers))
    assert not output.exists()


@pytest.mark.parametrize("trackers", [(), ("tensorboard",)])
def test_tensorboard_needs_nothing(trackers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert check_trackers(run_with("s3://bucket/run", *trackers)) == {}


def test_mlflow_has_files_or_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_trackers(run_with(str(tmp_path / "run"), "mlflow")) == {}
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI is not set, and s3://bucket/run is not a local folder"):
        check_trackers(run_with("s3://bucket/run", "mlflow"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example")
    found = check_trackers(run_with("s3://bucket/run", "mlflow"))
    assert found == {"MLFLOW_TRACKING_URI": "https://tracking.example"}


def test_wandb_has_a_key_or_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = run_with(str(tmp_path / "run"), "wandb")
    with pytest.raises(ConfigError, match=re.escape("wandb has no key for https://api.wandb.ai; set WANDB_API_KEY")):
        check_trackers(local)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password fromlogin\n")
    assert check_trackers(local) == {"WANDB_API_KEY": "fromlogin"}
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example:8080")
    with pytest.raises(ConfigError, match=r"no key for https://wandb\.example:8080"):
        check_trackers(local)
    monkeypatch.setenv("WANDB_API_KEY", "given")
    assert check_trackers(local)["WANDB_API_KEY"] == "given"


def test_files_of_wandb_stay_where_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    local = run_with(str(tmp_path / "run"), "wandb")
    assert check_trackers(local) == {"WANDB_MODE": "offline"}
    with pytest.raises(ConfigError, match=r"WANDB_MODE=offline would leave the files of wandb on one of the workers"):
        check_trackers(replace(local, output="s3://bucket/run"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert check_trackers(replace(local, output="s3://bucket/run")) == {"WANDB_MODE": "disabled"}


def test_unknown_and_repeated_trackers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.trackers: got 'comet', expected one of tensorboard, mlflow, wandb"):
        run_with("run", "comet")
    with pytest.raises(ConfigError, match=r"train\.trackers: .*expected each tracker at most once"):
        run_with("run", "mlflow", "mlflow")
