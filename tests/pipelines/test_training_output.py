"""Whose an output folder is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.train_config import TrainConfig, TrainRun
from pipelines.training_output import claim


def test_a_run_from_before_a_setting_existed_goes_on_with_its_default(tmp_path: Path) -> None:
    run = TrainRun(str(tmp_path / "run"))
    claim(run)
    written = tmp_path / "run" / "run.json"
    settings = json.loads(written.read_text())
    del settings["train"]["clip_norm"]
    written.write_text(json.dumps(settings))
    claim(run)
    other = replace(run, train=TrainConfig(clip_norm=7.5))
    with pytest.raises(ConfigError, match=r"other settings: train\.clip_norm was .*, now 7\.5; give the same"):
        claim(other)
