"""Training runs that are refused, or fail before anything is learnt: their folders are as they were."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_core.errors import ImageError, StorageError, UserError
from pipelines.cluster import connection, waiting
from pipelines.cluster.capacity import Capacity
from pipelines.training import run as training
from pipelines.training.config import TrainRun
from pipelines.training.output import claim
from pipelines.training.run import train
from tests.pipelines.training.test_run import small_run, write_data


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainRun:
    """A run on a cluster of two CPUs, which is not there."""
    monkeypatch.setattr(connection, "connect", lambda *_, **__: nullcontext())
    capacity = Capacity(({"CPU": 2.0},), is_own=True)
    for module in (training, waiting):
        monkeypatch.setattr(module, "read_capacity", lambda: capacity)
    return small_run(tmp_path / "run", write_data(tmp_path / "data"))


def refused(run: TrainRun) -> str:
    with pytest.raises(UserError) as caught:
        train(run)
    return str(caught.value)


def with_annotations(run: TrainRun, text: str) -> TrainRun:
    path = Path(run.data.train.annotations).with_name("other.json")
    path.write_text(text)
    return replace(run, data=replace(run.data, train=replace(run.data.train, annotations=str(path))))


@pytest.mark.parametrize("is_there", [False, True])
def test_a_refused_start_leaves_a_new_folder_as_it_was(run: TrainRun, is_there: bool) -> None:
    output = Path(run.output)
    if is_there:
        output.mkdir()
    settings = run.train
    assert "need 5 CPUs" in refused(replace(run, train=replace(settings, num_workers=5, batch_size=5)))
    assert "need 1 GPUs" in refused(replace(run, train=replace(settings, use_gpu=True)))
    assert refused(with_annotations(run, "{"))
    assert refused(with_annotations(run, '{"images": [], "annotations": [], "categories": []}'))
    assert refused(replace(run, init="/nowhere"))
    assert output.exists() == is_there
    assert not is_there or not list(output.iterdir())


def test_a_mistake_found_before_anything_is_learnt_leaves_the_folder_free(
    run: TrainRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(run: TrainRun, *_: Any) -> Any:
        assert json.loads(Path(run.output, "run.json").read_text())
        raise ImageError("unreadable", "a.jpg: damaged")

    monkeypatch.setattr(training, "_fit", fit)
    assert refused(run) == "a.jpg: damaged"
    assert not Path(run.output).exists()


def test_a_bug_leaves_the_run_there(run: TrainRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(training, "_fit", fit)
    with pytest.raises(ZeroDivisionError):
        train(run)
    assert Path(run.output, "run.json").exists()


def test_a_file_as_output_is_refused_first(run: TrainRun) -> None:
    Path(run.output).write_text("mine")
    assert "is a file" in refused(run)
    assert Path(run.output).read_text() == "mine"


def test_the_content_of_annotations_is_what_a_run_remembers(run: TrainRun, tmp_path: Path) -> None:
    claim(run, training._digests(run))
    moved = replace(run, data=replace(run.data, train=write_data(tmp_path / "elsewhere")))
    assert not claim(moved, training._digests(moved))
    document = json.loads(Path(run.data.train.annotations).read_text())
    other = with_annotations(run, json.dumps({**document, "info": {}}))
    with pytest.raises(UserError, match="holds something else"):
        claim(other, training._digests(other))


def test_two_different_runs_that_find_a_free_folder(run: TrainRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one has claimed it when this one has looked at its data."""
    wait = waiting.wait_for_machines

    def late(*wanted: Any) -> None:
        wait(*wanted)
        claim(replace(run, train=replace(run.train, learning_rate=0.5)), training._digests(run))

    monkeypatch.setattr(training, "wait_for_machines", late)
    assert "learning_rate was 0.5, now 0.002" in refused(run)
    assert json.loads(Path(run.output, "run.json").read_text())["train"]["learning_rate"] == 0.5


def test_a_missing_file_of_annotations_is_named(run: TrainRun) -> None:
    missing = replace(run, data=replace(run.data, train=replace(run.data.train, annotations="/nowhere.json")))
    with pytest.raises(StorageError, match=r"nowhere\.json"):
        train(missing)
