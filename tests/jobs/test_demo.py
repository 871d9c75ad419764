"""The demo without its training: what it makes, takes up again and says; and once as a whole, with a tiny training."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

import jobs.evaluate
import jobs.label
import jobs.train
import pipelines.evaluation.run
import pipelines.report.contact_sheet
from jobs import demo
from maskrcnn_core.evaluation.coco import CocoScores
from maskrcnn_core.evaluation.results import Coverage
from pipelines.evaluation.config import EvaluateRun
from pipelines.evaluation.run import EvaluationSummary
from pipelines.labelling.config import LabelRun
from pipelines.training.config import TrainRun
from pipelines.training.run import TrainSummary

BOX, MASK = (0.5, 0.876, *[0.1] * 10), (0.4, 0.804, *[0.1] * 10)
SCORES = CocoScores({"bbox": BOX, "segm": MASK}, (), Coverage(2, 2, 0, 0, 0), 5, 6, {}, {})


@dataclasses.dataclass
class Calls:
    """What the steps of the demo were called with."""

    train: list[TrainRun] = dataclasses.field(default_factory=list)
    label: list[LabelRun] = dataclasses.field(default_factory=list)
    score: list[EvaluateRun] = dataclasses.field(default_factory=list)
    draw: list[tuple[str, ...]] = dataclasses.field(default_factory=list)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The steps that take minutes are only noted down."""
    noted = Calls()

    def train(run: TrainRun) -> TrainSummary:
        noted.train.append(run)
        return TrainSummary(
            f"{run.output}/checkpoints/last", f"{run.output}/checkpoints/last", 1, 1, 1, 1, None, None, 0
        )

    def score(run: EvaluateRun) -> EvaluationSummary:
        noted.score.append(run)
        return EvaluationSummary(run, SCORES, ())

    def draw(*arguments: str) -> str:
        noted.draw.append(arguments)
        return arguments[-1]

    monkeypatch.setattr(jobs.train, "train_with_progress", train)
    monkeypatch.setattr(jobs.label, "label_with_progress", noted.label.append)
    monkeypatch.setattr(jobs.evaluate, "print_scores", lambda scores: print(f"scores: {scores is SCORES}"))
    monkeypatch.setattr(pipelines.evaluation.run, "evaluate", score)
    monkeypatch.setattr(pipelines.report.contact_sheet, "write_contact_sheet", draw)
    return noted


def run_demo(output: Path, *more: str) -> int:
    return demo.main(["--output", str(output), "--train_images", "3", "--val_images", "2", *more])


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_steps_fit_together(calls: Calls, tmp_path: Path) -> None:
    assert run_demo(tmp_path / "out", "--seed", "4") == 0
    (training,), (labelling,), (scoring,), (drawing,) = calls.train, calls.label, calls.score, calls.draw
    train_set, val_set = training.data.train, training.data.val
    assert training.model.backbone.name == "efficientnet_lite0"  # its weights need no network
    assert labelling.checkpoint == f"{training.output}/checkpoints/last"
    assert labelling.images == scoring.annotations == drawing[1] == val_set.annotations
    assert labelling.output == scoring.labels == drawing[0]
    ids = [
        {entry["id"] for entry in json.loads(Path(dataset.annotations).read_text())["images"]}
        for dataset in (train_set, val_set)
    ]
    assert [len(group) for group in ids] == [3, 2]
    assert not ids[0] & ids[1]  # a picture depends on seed and id alone: none is in both sets
    assert sorted(Path(val_set.images).iterdir())


def test_closing_lines(calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert run_demo(output) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in lines if line.startswith("[")] == [f"[{step}/5]" for step in range(1, 6)]
    assert "[1/5] pictures: 3 to learn from, 2 held out" in lines
    assert lines.index("scores: True") > lines.index("[4/5] score the labels")
    closing = lines[lines.index("Done: box AP50 0.88, mask AP50 0.80 on pictures that the model has never seen.") + 1 :]
    assert [line.split() for line in closing[:3]] == [
        ["look", "at", f"{output}/contact_sheet.png"],
        ["checkpoint", f"{output}/training/checkpoints/last"],
        ["labels", f"{output}/labelled/labels/*.parquet"],
    ]
    commands = " ".join(closing[3:]).replace("\\", "")
    for name in ("train", "label", "evaluate"):
        assert f"python -m jobs.{name} --" in commands
    config = next(word for word in commands.split() if word.endswith(".yaml"))
    assert (Path(__file__).parents[2] / config).is_file()


def test_a_second_start_takes_up_the_pictures(calls: Calls, tmp_path: Path) -> None:
    assert run_demo(tmp_path / "out") == 0
    made = files(tmp_path / "out" / "data-3-2-seed0")
    assert len(made) == 3 + 2 + 2
    assert run_demo(tmp_path / "out") == 0
    assert files(tmp_path / "out" / "data-3-2-seed0") == made
    assert calls.train[0] == calls.train[1]


def test_a_start_that_was_broken_off_while_drawing_is_done_again(calls: Calls, tmp_path: Path) -> None:
    half = tmp_path / "out" / "data-3-2-seed0" / "train.partial" / "images"
    half.mkdir(parents=True)
    (half / "000000000001.jpg").write_bytes(b"half")
    assert run_demo(tmp_path / "out") == 0
    assert not half.parent.exists()
    assert len(files(tmp_path / "out" / "data-3-2-seed0")) == 3 + 2 + 2


def test_two_outputs_hold_the_same_pictures_and_another_seed_others(calls: Calls, tmp_path: Path) -> None:
    for name, seed in (("one", "0"), ("two", "0"), ("three", "1")):
        assert run_demo(tmp_path / name, "--seed", seed) == 0
    one, two, three = (
        {
            path.name: content
            for path, (_, content) in files(tmp_path / name / f"data-3-2-seed{seed}/train/images").items()
        }
        for name, seed in (("one", 0), ("two", 0), ("three", 1))
    )
    assert one == two
    assert one.keys() == three.keys()
    assert not any(one[name] == three[name] for name in one)


@pytest.mark.parametrize("name", ["train_images", "val_images"])
def test_a_demo_without_pictures_is_one_line(
    name: str, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(tmp_path / "out", f"--{name}", "0") == 2
    assert capsys.readouterr() == ("", f"error: {name}: got 0, expected a number above 0\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
@pytest.mark.slow  # trains, labels and scores on Ray: some 30 s
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns about settings of its own that it sets itself
def test_the_whole_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.cluster.config import ClusterConfig
    from pipelines.cluster.connection import connect

    settings = yaml.safe_load(demo._CONFIG.read_text())
    settings["train"] |= {"steps": 2, "warmup_steps": 0, "batch_size": 1, "checkpoint_every": 1}
    settings["train"] |= {"threads_per_worker": 1}
    settings["model"]["input"] |= {"short_side": 64, "long_side": 96}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(demo, "_CONFIG", tmp_path / "tiny.yaml")
    with connect(ClusterConfig(num_cpus=4)):
        assert run_demo(tmp_path / "out") == 0
        first = capsys.readouterr().out
        made = files(tmp_path / "out" / "labelled" / "labels")
        assert run_demo(tmp_path / "out") == 0
    second = capsys.readouterr().out
    assert "Done: box AP50 " in first
    assert first[first.index("Done:") :] == second[second.index("Done:") :]
    assert files(tmp_path / "out" / "labelled" / "labels") == made
    assert (tmp_path / "out" / "contact_sheet.png").stat().st_size > 1000
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["images"]["labelled"] == 2


def test_paths_of_the_closing_lines_are_as_they_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training gives its checkpoints by whole paths."""
    monkeypatch.chdir(tmp_path)
    lines = demo._closing_lines(SCORES, str(tmp_path / "demo/best"), "demo/labelled", "demo/sheet.png")
    assert "  checkpoint demo/best" in lines
    assert "  checkpoint /elsewhere/best" in demo._closing_lines(SCORES, "/elsewhere/best", "x", "y")
