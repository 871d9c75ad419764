import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from jobs import train as job
from jobs.cli import parse_run
from pipelines.evaluation.config import EvaluateRun
from pipelines.images.source import entries as entries_of
from pipelines.images.source import open_source
from pipelines.labelling.config import LabelRun
from pipelines.training import run as training
from pipelines.training.config import TrainRun
from pipelines.training.data_config import DataConfig, DatasetConfig
from pipelines.training.events import (
    CheckpointPassedOver,
    CheckpointSaved,
    DataNote,
    Interrupted,
    MachineLeaves,
    SchedulePlanned,
    StepReport,
    StoppedEarly,
    TrackerFailed,
    TrainingEvent,
    TrainingStarted,
    ValidationReport,
    WorkersLost,
)
from pipelines.training.run import TrainSummary

STARTED = TrainingStarted(0, 600, 200, 73, 2, 4, 0)
STEP = StepReport(
    step=20,
    steps=600,
    epoch=0.4,
    losses={"rpn_box": 0.25, "roi_mask": 0.5},
    learning_rate=0.004,
    grad_norm=1.0,
    images_per_second=3.456,
    seconds_left=3725.0,
)
VALIDATION = ValidationReport(200, 73, 1, {"bbox/AP": 0.2514, "segm/AP": 0.3}, 0.3, True, 61.4)
SUMMARY = TrainSummary("runs/one/checkpoints/best", "runs/one/checkpoints/last", 600, 2400, 3.5, 685.0, 0.3, 200, 0)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (STARTED, "starting of 600 steps: 200 training images, 73 to validate on; 2 workers with 4 threads"),
        (
            TrainingStarted(300, 600, 200, 0, 1, 1, 5),
            "resuming after step 300 of 600 steps: 200 training images, 5 faulty annotations left out; "
            "1 worker with 1 threads",
        ),
        (
            STEP,
            "step 20/600  loss 0.750  rpn_box 0.250  roi_mask 0.500  lr 0.004  3.46 images/s  waiting 0%  0.0 GiB  "
            "left 01:02:05",
        ),
        (
            VALIDATION,
            "validation at step 200: bbox/AP 0.251  segm/AP 0.300  73 images in 61 s  (1 images failed)  best so far",
        ),
        (
            ValidationReport(200, 73, 0, {}, None, False, 61.4),
            "validation at step 200: no annotated object to score on  73 images in 61 s",
        ),
        (CheckpointSaved(100, "runs/one/checkpoints/last"), "checkpoint at step 100: runs/one/checkpoints/last"),
        (
            replace(STEP, waiting=0.034, memory_gib=7.25, skipped_steps=2),
            "step 20/600  loss 0.750  rpn_box 0.250  roi_mask 0.500  lr 0.004  3.46 images/s  waiting 3%  7.2 GiB  "
            "2 steps skipped  left 01:02:05",
        ),
        (
            replace(VALIDATION, losses={"rpn_box": 0.25, "roi_mask": 0.5}),
            "validation at step 200: bbox/AP 0.251  segm/AP 0.300  loss 0.750  73 images in 61 s  (1 images failed)  "
            "best so far",
        ),
        (
            CheckpointPassedOver("resume/step-00000300/training/state.pt: has 5 bytes, expected 14 bytes"),
            "checkpoint passed over, taking the one before it: resume/step-00000300/training/state.pt: has 5 bytes, "
            "expected 14 bytes",
        ),
        (
            StoppedEarly(600, 3, 300),
            "stopping at step 600: 3 validations in a row no better than that at step 300 (train.patience)",
        ),
        (
            WorkersLost("the machine ran out of memory"),
            "workers lost: the machine ran out of memory; others start from the last checkpoint, if train.max_failures "
            "allows",
        ),
        (Interrupted(20.0), "saving a checkpoint, for at most 20 seconds; interrupt again to end at once"),
        (
            DataNote("a.json: 1 mask is mended: annotation 3 of image 2: \x1b[2J\nfinished"),
            "note: a.json: 1 mask is mended: annotation 3 of image 2: \\x1b[2J\\nfinished",
        ),
        (SchedulePlanned(4500, 8, 3000.0), "4,500 steps of 8 images = 12 epochs of 3,000 images"),
        (SchedulePlanned(90_000, 16, 200.0), "90,000 steps of 16 images = 7,200 epochs of 200 images"),
        (SchedulePlanned(5, 2, 150_000.4), "5 steps of 2 images = 6.67e-05 epochs of 150,000 images"),
        (SchedulePlanned(100, 4, 160.0), "100 steps of 4 images = 2.5 epochs of 160 images"),
        (
            TrackerFailed("mlflow", "no answer from \x1b[2Jhttps://tracking.example"),
            "mlflow (train.trackers) fails, training goes on: no answer from \\x1b[2Jhttps://tracking.example",
        ),
        (MachineLeaves(40), "a machine of this run will be taken away: checkpoint at step 40"),
    ],
)
def test_event_lines(event: TrainingEvent, line: str) -> None:
    assert job.event_line(event) == line


def test_summary_names_the_checkpoint_and_the_next_commands() -> None:
    val = DatasetConfig("data/val images", "data/val.json")
    lines = job.summary_lines(TrainRun("runs/one/", data=DataConfig(val=val)), SUMMARY)
    assert lines == [
        "finished: 600 steps, 2400 images in 685 s (3.50 images/s), best AP 0.300 at step 200",
        "checkpoint: runs/one/checkpoints/best",
        "next:",
        "  python -m jobs.label --checkpoint runs/one/checkpoints/best --images data/val.json "
        "--image_root 'data/val images' --output runs/one-labels",
        "  python -m jobs.evaluate --labels runs/one-labels --annotations data/val.json",
    ]


@pytest.mark.parametrize("images", ["elsewhere/my images", "val/images", "val"])
def test_the_next_command_finds_the_images_wherever_they_lie(tmp_path: Path, images: str) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / images).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9)).save(tmp_path / images / "a.png")
    entries = [{"id": 5, "file_name": "a.png", "width": 9, "height": 9}]
    annotations = tmp_path / "val" / "it's.json"
    annotations.write_text(json.dumps({"images": entries, "annotations": [], "categories": [{"id": 1, "name": "x"}]}))
    val = DatasetConfig(str(tmp_path / images), str(annotations))
    run = TrainRun(str(tmp_path / "run"), data=DataConfig(val=val))
    label, score = [line.strip() for line in job.summary_lines(run, SUMMARY) if "python -m" in line]
    words = shlex.split(label)
    assert words[:3] == ["python", "-m", "jobs.label"]
    labelling = parse_run(LabelRun, prog="x", argv=words[3:])
    source = open_source(labelling.images, labelling.image_root)
    (found,) = [uri for some in entries_of(source.parts[0]) for uri in some.uris]
    assert found == str(tmp_path / images / "a.png")
    scoring = parse_run(EvaluateRun, prog="x", argv=shlex.split(score)[3:])
    assert (scoring.labels, scoring.annotations) == (labelling.output, str(annotations))


def test_summary_names_the_curves() -> None:
    lines = job.summary_lines(TrainRun("runs/one"), replace(SUMMARY, curves="runs/one/curves.svg"))
    assert lines[1:3] == ["checkpoint: runs/one/checkpoints/best", "curves: runs/one/curves.svg"]


def test_summary_repeats_what_was_left_out() -> None:
    lines = job.summary_lines(TrainRun("runs/one"), replace(SUMMARY, notes=("a.json: 2 masks are mended: ...",)))
    assert lines[1] == "note: a.json: 2 masks are mended: ..."


def test_prints_events_and_summary(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fake_train(run: TrainRun, on_progress: Callable[[TrainingEvent], None]) -> TrainSummary:
        assert run.train.steps == 600
        for event in (SchedulePlanned(600, 4, 200.0, ("the learning rate never falls",)), STARTED, STEP, VALIDATION):
            on_progress(event)
        return SUMMARY

    monkeypatch.setattr(training, "train", fake_train)
    assert job.main(["--output", "runs/one", "--train.steps", "600"]) == 0
    printed, noted = capsys.readouterr()
    words = [line.split()[0] for line in printed.splitlines()[:6]]
    assert words == ["600", "starting", "step", "validation", "finished:", "checkpoint:"]
    assert noted.splitlines() == [
        "note: the learning rate never falls",
        "note: some 62 min here for the 580 steps left, at 3.5 images/s; validations come on top",
    ]


def test_the_time_is_told_once_and_never_before_it_was_measured() -> None:
    notes: list[str] = []
    teller = job.Teller(lambda _: None, notes.append)
    reports = [replace(STEP, step=step, seconds_left=(600.0 - step) * 10) for step in (120, 139, 140, 160, 600)]
    teller(replace(STARTED, step=119))
    teller(reports[0])
    assert notes == []
    for report in reports[1:]:
        teller(report)
    assert notes == ["note: some 77 min here for the 461 steps left, at 3.5 images/s; validations come on top"]
    teller(replace(STARTED, step=140))  # other workers, perhaps slower ones
    teller(reports[3])
    assert len(notes) == 2
    teller(replace(STARTED, step=140))
    teller(reports[4])  # nothing is left
    assert len(notes) == 2
    teller(replace(STARTED, step=140, validation_images=0))
    teller(reports[3])
    assert notes[2].endswith("steps left, at 3.5 images/s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (50.4, "50 s"),
        (89.0, "89 s"),
        (91.0, "2 min"),
        (2400.0, "40 min"),
        (7170.0, "2 h 0 min"),
        (12_000.0, "3 h 20 min"),
        (447_000.0, "5 days 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert job.duration(seconds) == text


def test_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[TrainingEvent] = [STARTED, STEP, VALIDATION]

    def fake_train(run: TrainRun, on_progress: Callable[[TrainingEvent], None]) -> TrainSummary:
        for event in shown:
            on_progress(event)
        return SUMMARY

    monkeypatch.setattr(training, "train", fake_train)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert job.main(["--output", "runs/one"]) == 0
    printed = capsys.readouterr().out
    assert "validation at step 200" in printed
    assert "20/600" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.batch_size", "1", "--train.num_workers", "2"], "train.batch_size: got 1, expected at least"),
        ([], "data.train.images: not given, expected a folder"),
        (["--data.train.images", "x", "--data.train.annotations", "y.json"], "y.json: no such file"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main(["--output", str(tmp_path / "run"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_coco_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([1]))
    arguments = ["--output", str(tmp_path / "run"), "--data.train.images", ".", "--data.train.annotations", str(path)]
    assert job.main(arguments) == 2
    assert "the top level is a list" in capsys.readouterr().err
