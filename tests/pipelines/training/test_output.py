"""Whose an output folder is."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_core.errors import ConfigError, StorageError
from pipelines.training import output as training_output
from pipelines.training.config import TrainConfig, TrainRun
from pipelines.training.data_config import DataConfig, DatasetConfig
from pipelines.training.output import claim, publish, read_summary, release, take_over, write_summary
from pipelines.training.schedule import schedule_in_steps


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


def test_a_run_from_before_settings_were_renamed_goes_on(tmp_path: Path) -> None:
    run = TrainRun(str(tmp_path / "run"))
    claim(run)
    written = tmp_path / "run" / "run.json"
    stored = json.loads(written.read_text())
    model = stored["model"]
    dense, model["roi"] = model.pop("dense"), model.pop("regions")
    del dense["crowd_overlap"]
    model["anchors"], model["rpn"] = dense.pop("anchors"), dense
    written.write_text(json.dumps(stored))
    assert not claim(run)
    assert not claim(run)
    other = replace(run, model=replace(run.model, dense=replace(run.model.dense, post_nms_test=7)))
    with pytest.raises(ConfigError, match=r"other settings: model\.dense\.post_nms_test was 1000, now 7; give"):
        claim(other)


# ---- claims ----------------------------------------------------------------------------------------------------------


def run_with(output: Path, steps: int = 60, images: str = "/a/images", annotations: str = "/a/train.json") -> TrainRun:
    source = DatasetConfig(images=images, annotations=annotations)
    return TrainRun(str(output), data=DataConfig(train=source), train=TrainConfig(steps=steps))


ONE, OTHER = {"data.train.annotations": "1" * 64}, {"data.train.annotations": "2" * 64}


def test_the_first_claim_makes_the_run_and_the_second_finds_it(tmp_path: Path) -> None:
    assert claim(run_with(tmp_path / "run"), ONE)
    assert not claim(run_with(tmp_path / "run"), ONE)


def test_of_many_claims_at_once_one_succeeds(tmp_path: Path) -> None:
    for number in range(20):
        barrier = threading.Barrier(4)

        def try_it(_: int, number: int = number, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return claim(run_with(tmp_path / str(number)), ONE)

        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(try_it, range(4))) == [False, False, False, True]


def test_data_may_move_while_the_annotations_stay(tmp_path: Path) -> None:
    claim(run_with(tmp_path / "run"), ONE)
    moved = run_with(tmp_path / "run", images="s3://b/images", annotations="s3://b/train.json")
    assert not claim(moved, ONE)
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored["data"]["train"]["images"] == "s3://b/images"
    with pytest.raises(ConfigError, match=r"data\.train\.annotations holds something else than when the run began"):
        claim(moved, OTHER)
    with pytest.raises(ConfigError, match=r"holds something else"):
        claim(run_with(tmp_path / "run"), OTHER)


def test_a_run_of_an_earlier_release_knows_only_where_its_data_lie(tmp_path: Path) -> None:
    claim(run_with(tmp_path / "run"))
    written = tmp_path / "run" / "run.json"
    stored = json.loads(written.read_text())
    del stored["content"]
    written.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"data\.train\.images was \"/a/images\", now \"/b\""):
        claim(run_with(tmp_path / "run", images="/b"), ONE)
    assert not claim(run_with(tmp_path / "run"), ONE)
    assert not claim(run_with(tmp_path / "run", images="/b"), ONE)  # known by now


def test_steps_may_grow_and_not_shrink(tmp_path: Path) -> None:
    claim(run_with(tmp_path / "run", steps=60), ONE)
    summary = {"checkpoint": "c", "last": "l", "steps": 60, "images": 60}
    write_summary(str(tmp_path / "run"), summary)
    assert read_summary(str(tmp_path / "run")) == summary
    assert not claim(run_with(tmp_path / "run", steps=90), ONE)
    assert read_summary(str(tmp_path / "run")) is None  # no longer finished
    with pytest.raises(ConfigError, match=r"train\.steps was 90, now 60"):
        claim(run_with(tmp_path / "run", steps=60), ONE)


def scheduled(output: Path, epoch_images: int = 30, **settings: Any) -> TrainRun:
    return TrainRun(str(output), train=schedule_in_steps(TrainConfig(**settings), epoch_images))


def test_epochs_may_grow_and_shares_follow(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"batch_size": 2, "warmup_share": 0.1, "decay_shares": (0.5,), "validations": 4}
    claim(scheduled(tmp_path / "run", epochs=4, **asked))
    write_summary(str(tmp_path / "run"), {"checkpoint": "c", "last": "l", "steps": 60, "images": 120})
    assert not claim(scheduled(tmp_path / "run", epochs=6, **asked))
    assert read_summary(str(tmp_path / "run")) is None
    stored = json.loads((tmp_path / "run" / "run.json").read_text())["train"]
    assert (stored["steps"], stored["warmup_steps"], stored["decay_steps"]) == (90, 9, [45])
    assert (stored["epochs"], stored["validate_every"]) == (6, 23)
    with pytest.raises(ConfigError, match=r"train\.steps was 90, now 60; train\.epochs was 6, now 4"):
        claim(scheduled(tmp_path / "run", epochs=4, **{**asked, "warmup_steps": 9, "warmup_share": 0.0}))
    with pytest.raises(ConfigError, match=r"settings: train\.warmup_steps was 9, now 24; give"):
        claim(scheduled(tmp_path / "run", epochs=8, **{**asked, "warmup_share": 0.2}))
    with pytest.raises(ConfigError, match=r"settings: train\.decay_steps was \[45\], now \[60000, 80000\]; give"):
        claim(scheduled(tmp_path / "run", epochs=8, **{**asked, "decay_shares": ()}))


def test_the_same_steps_may_be_asked_for_in_another_way(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"batch_size": 2, "epochs": 4, "warmup_share": 0.1, "decay_shares": (0.5,)}
    claim(scheduled(tmp_path / "run", batch_size=2, steps=60, warmup_steps=6, decay_steps=(30,)))
    written = tmp_path / "run" / "run.json"
    stored = json.loads(written.read_text())
    for name in ("epochs", "warmup_share", "decay_shares", "validations"):  # a run of an earlier release
        del stored["train"][name]
    written.write_text(json.dumps(stored))
    assert not claim(scheduled(tmp_path / "run", **asked))
    assert not claim(scheduled(tmp_path / "run", **{**asked, "epochs": 0, "steps": 60}))
    with pytest.raises(ConfigError, match=r"settings: train\.decay_steps was \[30\], now \[36\]"):
        claim(scheduled(tmp_path / "run", **{**asked, "decay_shares": (0.6,)}))


def test_what_is_free_to_change_is_taken_over(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    claim(run, ONE)
    assert not claim(replace(run, train=replace(run.train, checkpoint_every=7)), ONE)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["train"]["checkpoint_every"] == 7


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"{}", bytes(30), b'{"train": 1, "data": 2}'])
def test_torn_books_are_one_line(tmp_path: Path, content: bytes) -> None:
    claim(run_with(tmp_path / "run"), ONE)
    (tmp_path / "run" / "run.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"run\.json: .*(put it back|use a new output)"):
        claim(run_with(tmp_path / "run"), ONE)
    (tmp_path / "run" / "summary.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"summary\.json: .*delete it"):
        read_summary(str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["_run", "labels"])
def test_the_folder_of_a_labelling_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(StorageError, match="folder of a labelling run"):
        claim(run_with(tmp_path / "run"), ONE)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_claim_is_given_up_while_nothing_was_trained(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    claim(run_with(tmp_path / "run"), ONE)
    owner = take_over(output)
    release(output, "another process")
    assert (tmp_path / "run" / "run.json").exists()
    (tmp_path / "run" / "resume" / "step-00000010").mkdir(parents=True)
    (tmp_path / "run" / "resume" / "step-00000010" / "manifest.json").write_text("{}")
    release(output, owner)
    assert (tmp_path / "run" / "run.json").exists()
    shutil.rmtree(tmp_path / "run" / "resume" / "step-00000010")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    release(output, owner)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


# ---- publishing ------------------------------------------------------------------------------------------------------


def test_readers_find_a_whole_checkpoint_at_every_moment(tmp_path: Path) -> None:
    target, stop, lacking = tmp_path / "last", threading.Event(), []

    def folder(number: int) -> Path:
        made = tmp_path / f"staging-{number}"
        made.mkdir()
        (made / "a").write_text(str(number))
        return made

    publish(folder(-1), str(target))

    def read() -> None:
        while not stop.is_set():
            try:
                (target / "a").read_text()
            except OSError as error:
                lacking.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        publish(folder(number), str(target))
    stop.set()
    reader.join()
    assert (target / "a").read_text() == "299"
    assert lacking == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]


def test_without_an_exchange_of_names_publishing_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_output, "exchange", lambda *_: False)
    for number in range(3):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "a").write_text(str(number))
        publish(tmp_path / "new", str(tmp_path / "last"))
    assert (tmp_path / "last" / "a").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
