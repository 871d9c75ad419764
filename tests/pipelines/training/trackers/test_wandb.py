"""Without its server: what Weights & Biases has written is read back from its own file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.training.trackers.tracker import TrackedRun
from pipelines.training.trackers.wandb import WandbTracker


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is an extra: python -m pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)


def records_of(file: Path) -> list[Any]:
    """The records of a log in LevelDB's format: after a header of 7 bytes blocks of 32 KiB, in these fragments of
    checksum (4 bytes), length (2), type (1: whole, 2: first, 3: middle, 4: last) and content."""
    from wandb.proto import wandb_internal_pb2

    content, position, pieces, records = file.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # no fragment begins so near to the end of a block
            position += 32768 - position % 32768
            continue
        length, fragment = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        pieces += content[position + 7 : position + 7 + length]
        position += 7 + length
        if fragment in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            records.append(record)
            pieces = b""
    return records


@pytest.mark.usefixtures("_offline")
@pytest.mark.filterwarnings("ignore")  # the package's own
def test_a_run_without_a_server_and_its_sequel(tmp_path: Path) -> None:
    first = WandbTracker(TrackedRun("one", str(tmp_path), {"train": {"steps": 6}}, ""))
    first.scalars({"loss/total": 0.5}, 4)
    first.close("interrupted", {})
    second = WandbTracker(TrackedRun("one", str(tmp_path), {"train": {"steps": 6}}, first.identity))
    assert second.identity == first.identity
    second.scalars({"loss/total": 0.25}, 3)  # a step that comes again is no fault
    second.picture("validation/pictures", np.zeros((4, 6, 3), np.uint8), 6)
    second.close("finished", {"best_score": 0.5})

    files = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{first.identity}.wandb"))
    assert len(files) == 2
    found = [
        {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        for file in files
        for record in records_of(file)
        if record.WhichOneof("record_type") == "history"
    ]
    numbers = [(entry["step"], entry["loss/total"]) for entry in found if "loss/total" in entry]
    assert numbers == [("4", "0.5"), ("3", "0.25")]
    assert any("validation/pictures" in entry for entry in found)
