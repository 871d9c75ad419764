from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines import storage
from pipelines.training.checkpoint_store import copy_file
from pipelines.training.trackers import tensorboard
from pipelines.training.trackers.tensorboard import TensorBoardTracker


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(entry.step, entry.value) for entry in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_numbers_and_pictures_of_a_local_run(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(str(tmp_path), 0)
    tracker.scalars({"loss/total": 0.5, "validation_AP_of/a door (old)": 0.25}, 2)
    tracker.scalars({"loss/total": 0.25}, 4)
    tracker.picture("validation/pictures", np.zeros((2, 3, 3), np.uint8), 4)
    tracker.close("finished", {})
    found = scalars_of(tmp_path / "tensorboard")
    assert found == {"loss/total": [(2, 0.5), (4, 0.25)], "validation_AP_of/a door (old)": [(2, 0.25)]}
    tracker.close("finished", {})  # once more does no harm


def test_a_resumed_run_replaces_what_comes_again(tmp_path: Path) -> None:
    first = TensorBoardTracker(str(tmp_path), 0)
    for step in (2, 4, 6):
        first.scalars({"loss/total": 1.0}, step)
    first.close("failed", {})
    second = TensorBoardTracker(str(tmp_path), 3)
    second.scalars({"loss/total": 0.5}, 4)
    second.close("finished", {})
    assert scalars_of(tmp_path / "tensorboard") == {"loss/total": [(2, 1.0), (4, 0.5)]}


def test_of_a_remote_run_only_what_has_grown_is_copied(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []

    def counted(path: Path, uri: str) -> None:
        copied.append(uri)
        copy_file(path, uri)

    monkeypatch.setattr(tensorboard, "copy_file", counted)
    tracker = TensorBoardTracker(f"{bucket}/run", 0)
    tracker.scalars({"loss/total": 0.5}, 2)
    tracker.store()
    assert len(copied) == 1
    tracker.store()
    assert len(copied) == 1  # nothing was written since
    tracker.scalars({"loss/total": 0.25}, 4)
    tracker.close("finished", {})
    assert copied[0] == copied[1]
    (uri,) = storage.list_files(f"{bucket}/run/tensorboard")
    (tmp_path / "events.out.tfevents.1").write_bytes(storage.read_bytes(uri))
    assert scalars_of(tmp_path) == {"loss/total": [(2, 0.5), (4, 0.25)]}


def test_a_failed_run_copies_nothing_more(bucket: str) -> None:
    tracker = TensorBoardTracker(f"{bucket}/run", 0)
    tracker.scalars({"loss/total": 0.5}, 2)
    tracker.close("failed", {})
    assert not storage.is_folder(f"{bucket}/run/tensorboard")
