"""Settings of the service: mistakes before anything starts, and the file for `serve deploy`."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import serve
from maskrcnn_core.errors import ConfigError
from pipelines.serving.config import ServeConfig, ServeRun, named_models

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "checkpoint: not given"),
        ({"models": ("a",)}, "NAME=FOLDER"),
        ({"models": ("a/b=c",)}, "NAME=FOLDER"),
        ({"models": ("=c",)}, "NAME=FOLDER"),
        ({"models": ("a=",)}, "NAME=FOLDER"),
        ({"models": ("a=b", "a=c")}, "each name once"),
        ({"checkpoint": "c", "models": ("default=d",)}, "each name once"),
        ({"checkpoint": "c", "port": 0}, "port"),
        ({"checkpoint": "c", "host": "0.0.0.0"}, "--serve.keys"),
        ({"checkpoint": "c", "host": "example.com"}, "--serve.keys"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ServeRun(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"replicas": 0},
        {"replicas": 3, "max_replicas": 2},
        {"timeout": 0.0},
        {"min_score": 2.0},
        {"max_detections": 0},
        {"grpc_port": 70_000},
        {"uris": ("file:///etc",)},
        {"uris": ("http://169.254.169.254/",)},
        {"uris": ("s3://",)},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    (name,) = [*settings][-1:]
    with pytest.raises(ConfigError, match=rf"serve\.{name}"):
        ServeConfig(**settings)


def test_models_have_their_order() -> None:
    assert named_models(ServeRun("c", models=("a=d", "b=s3://e=f"))) == {"default": "c", "a": "d", "b": "s3://e=f"}
    for host in ("127.0.0.1", "::1", "localhost"):
        ServeRun("c", host=host)
    ServeRun("c", host="0.0.0.0", serve=ServeConfig(open_to_all=True))


def test_the_file_starts_the_same_service(tmp_path: Path, checkpoint: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    from pipelines.serving.application import build, config_of

    file = tmp_path / "serve.yaml"
    settings = ["--checkpoint", checkpoint, "--models", "[b=s3://bucket/b]", "--deploy_file", str(file)]
    more = [
        "--serve.use_gpu",
        "false",
        "--serve.max_replicas",
        "3",
        "--serve.timeout",
        "20",
        "--serve.grpc_port",
        "9000",
    ]
    assert serve.main([*settings, *more, "--storage.region", "eu-west-1"]) == 0
    document = yaml.safe_load(file.read_text())
    ServeDeploySchema.model_validate(document)
    (application,) = document["applications"]
    assert application["args"]["models"] == ["default", "b"]
    by_name = {one["name"]: one for one in application["deployments"]}
    checkpoints = {name: one["user_config"]["checkpoint"] for name, one in by_name.items()}
    assert checkpoints == {"detector-default": checkpoint, "detector-b": "s3://bucket/b"}
    assert by_name["detector-b"]["autoscaling_config"]["max_replicas"] == 3
    assert application["runtime_env"] == {"env_vars": {"AWS_REGION": "eu-west-1"}}
    given = config_of(application["args"]["serve"])
    assert given == ServeConfig(timeout=20.0, grpc_port=9000)
    built = build(application["args"])
    assert built._bound_deployment.name == "ingress"


def test_a_file_leaves_nothing_open(tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "none" / "serve.yaml")
    assert serve.main(["--checkpoint", checkpoint, "--deploy_file", file]) == 2
    assert "serve.use_gpu" in capsys.readouterr().err
    assert serve.main(["--checkpoint", checkpoint, "--deploy_file", file, "--serve.use_gpu", "true"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_checkpoint_is_looked_at_before_ray_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["--checkpoint", str(tmp_path)]) == 2
    assert "expected a checkpoint folder" in capsys.readouterr().err
