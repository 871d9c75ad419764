"""Checkpoints on S3."""

from pathlib import Path

import pytest

from maskrcnn_core.errors import CheckpointError
from maskrcnn_core.inference.settings import PredictorSettings
from pipelines import storage
from pipelines.benchmarks.chaos import small_checkpoint
from pipelines.storage.checkpoint_copy import describe_checkpoint, load_predictor, local_checkpoint


def test_a_checkpoint_on_s3_is_fetched_once_and_anew_when_it_changes(
    s3_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "cache"))
    here, there = small_checkpoint(tmp_path / "small"), f"{s3_folder}/checkpoint"
    assert local_checkpoint(str(here)) == str(here)
    with pytest.raises(CheckpointError, match=r"no model.safetensors in it"):
        local_checkpoint(there)
    for file in here.iterdir():
        storage.write_bytes_atomically(f"{there}/{file.name}", file.read_bytes())
    copy = local_checkpoint(there)
    assert (Path(copy) / "model.safetensors").read_bytes() == (here / "model.safetensors").read_bytes()
    assert local_checkpoint(there) == copy
    settings = PredictorSettings()
    assert describe_checkpoint(there, settings) == describe_checkpoint(str(here), settings)
    assert load_predictor(there, settings).fingerprint == load_predictor(str(here), settings).fingerprint
    storage.write_bytes_atomically(f"{there}/config.json", (here / "config.json").read_bytes() + b" ")
    assert local_checkpoint(there) != copy
