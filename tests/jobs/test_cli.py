import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from jobs.cli import run_job
from maskrcnn_core.errors import StorageError
from pipelines.evaluation.config import EvaluateRun
from pipelines.labelling.config import LabelRun
from pipelines.training.config import TrainRun

REQUIRED = ["--output", "out"]


def run_train(argv: Sequence[str]) -> tuple[int, list[TrainRun]]:
    """Exit code and the runs that the action was called with."""
    runs: list[TrainRun] = []

    def action(run: TrainRun) -> int:
        runs.append(run)
        return 0

    return run_job(TrainRun, action, prog="python -m jobs.train", argv=[*REQUIRED, *argv]), runs


def write_yaml(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text)
    return str(path)


def setting_names(run_type: type, prefix: str = "") -> list[str]:
    hints = get_type_hints(run_type)
    names: list[str] = []
    for field in fields(run_type):
        nested = is_dataclass(hints[field.name])
        names += setting_names(hints[field.name], f"{prefix}{field.name}.") if nested else [prefix + field.name]
    return names


def test_settings_come_from_defaults_then_file_then_arguments(tmp_path: Path) -> None:
    path = write_yaml(tmp_path, "train: {steps: 10, batch_size: 4}\nmodel: {dense: {post_nms_test: 5}}\n")
    code, (run,) = run_train(["--config", path, "--train.batch_size", "8", "--train.learning_rate", "1e-3"])
    assert code == 0
    assert (run.train.steps, run.train.batch_size, run.train.learning_rate) == (10, 8, 0.001)
    assert run.model.dense.post_nms_test == 5
    assert run.model.dense.pre_nms_test == TrainRun(output="out").model.dense.pre_nms_test
    assert isinstance(run, TrainRun)
    assert run.output == "out"


def test_no_arguments_beyond_the_required_give_the_defaults() -> None:
    assert run_train([]) == (0, [TrainRun(output="out")])


@pytest.mark.parametrize("argument", ["[100,200]", "[100, 200]"])
def test_lists_on_the_command_line(argument: str) -> None:
    _, (run,) = run_train(["--train.decay_steps", argument])
    assert run.train.decay_steps == (100, 200)


def test_categories_in_a_file(tmp_path: Path) -> None:
    path = write_yaml(tmp_path, "model: {categories: [{id: 3, name: car}]}")
    _, (run,) = run_train(["--config", path])
    assert run.model.categories[0].name == "car"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["--model.dense.batchsize", "3"],
            "--model.dense.batchsize is not an option; did you mean --model.dense.batch_size?",
        ),
        (["--steps=3"], "--steps is not an option; did you mean --train.steps?"),
        (
            ["--model.rpn.nms_overlap", "0.6"],
            "--model.rpn.nms_overlap is not an option; did you mean --model.dense.nms_overlap?",
        ),
        (
            ["--model.anchors.sizes=[8]"],
            "--model.anchors.sizes is not an option; did you mean --model.dense.anchors.sizes?",
        ),
        (
            ["--model.roi.batch_size", "3"],
            "--model.roi.batch_size is not an option; did you mean --model.regions.batch_size?",
        ),
        (["--qqq"], "--qqq is not an option; see --help"),
        (["stray"], "stray is not an option; see --help"),
        (["--train.steps", "many"], "train.steps: got many, expected a whole number"),
        (["--train.steps", "1.5"], "train.steps: got 1.5, expected a whole number"),
        (["--train.steps", "-1"], "train.steps: got -1, expected a number above 0"),
        (["--train.use_gpu", "perhaps"], "train.use_gpu: got perhaps, expected true or false or auto"),
        (["--train.schedule", "x"], "train.schedule: got x, expected one of step, cosine"),
        (["--train.decay_steps", "[1,x]"], "train.decay_steps: got x, expected a list, each a whole number"),
        (["--model.input.mean", "[1,2]"], "model.input.mean: got [1, 2], expected a list of 3, each a number"),
        (["--train.steps"], "--train.steps: no value given, expected a whole number"),
        (["--train.use_gpu"], "--train.use_gpu: no value given, expected true or false or auto"),
        (["--train.step", "10"], "--train.step is not an option; did you mean --train.steps?"),
        (["--train.accum=3"], "--train.accum is not an option; did you mean --train.accumulate?"),
        (["--train.lear", "0.5"], "--train.lear is not an option; did you mean --train.learning_rate?"),
        (["--out", "x"], "--out is not an option; did you mean --output?"),
        (["--conf", "x.yaml"], "--conf is not an option; did you mean --config?"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: the file of --config cannot be read (No such file or directory)"),
        (
            ["--model", "nowhere.yaml"],
            "--model: nowhere.yaml is not a YAML file of settings; single ones go as --model.input.short_side",
        ),
    ],
)
def test_a_mistake_in_an_argument_is_one_line(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(argv) == (2, [])
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {expected}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "model: {dense: {batchsize: 3}}",
            "model.dense.batchsize is not a setting; did you mean model.dense.batch_size?",
        ),
        ("model: {roi: {transform: pool}}", "model.roi is not a setting; did you mean model.regions?"),
        ("trian: {steps: 3}", "trian is not a setting; did you mean train?"),
        ("1: 3", "1 is not a setting"),
        ("train: {steps: many}", "train.steps: got many, expected a whole number"),
        ("train: {steps: -3}", "train.steps: got -3, expected a number above 0"),
        ("train: {schedule: x}", "train.schedule: got x, expected one of step, cosine"),
        ("train: 3", "train: got '3', expected settings such as train.steps"),
        ("train: [3]", "train: got a list, expected settings such as train.steps"),
        ("train: {steps: 3}\ntrain: {batch_size: 3}", "train stands twice (again in line 2); keep one"),
        ("train:\n  steps: [\n", "not YAML: line 3: expected the node content, but found '<stream end>'"),
        ("- 1", "holds no settings; expected YAML such as `output: runs/first`"),
        ("", "holds no settings; expected YAML such as `output: runs/first`"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_yaml(tmp_path, text)
    assert run_train(["--config", path]) == (2, [])
    assert capsys.readouterr().err == f"error: {path}: {expected}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: " + "[" * 5000 + "]" * 5000, ": line 1: more than 50 lists or sections within each other"),
        ("{a: " * 5000, ": line 1: more than 50 lists or sections within each other"),
        ("train: {steps: " + "9" * 5000 + "}", "a setting cannot be read: "),
        ('init: "a\\0b"', ": init: got 'a\\x00b', expected text without the character NUL"),
        ('init: "a\\ud800b"', ": "),
    ],
    ids=["lists", "sections", "digits", "nul", "half a character"],
)
def test_hostile_settings_are_one_line_and_soon(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    assert run_train(["--config", write_yaml(tmp_path, text)]) == (2, [])
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("argument", ["[" * 5000, "9" * 5000, "{a: " * 5000, "\udce9"])
def test_hostile_arguments_are_one_line(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("--train.steps", "--train.decay_steps", "--init"):
        code, runs = run_train([name, argument])
        err = capsys.readouterr().err
        assert (code, err.count("\n")) in ((2, 1), (0, 0)), (name, err[:300])
        assert len(err) < 1000
        assert runs == [] or name == "--init"


def test_a_mistake_in_an_argument_does_not_blame_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_yaml(tmp_path, "train: {steps: 3}")
    assert run_train(["--config", path, "--train.steps=many"]) == (2, [])
    assert capsys.readouterr().err == "error: train.steps: got many, expected a whole number\n"


def test_the_types_of_a_setting_that_may_be_null_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--checkpoint", "c", "--images", "i", "--output", "o", "--label.min_score", "x"]
    assert run_job(LabelRun, lambda _: 0, prog="x", argv=argv) == 2
    assert capsys.readouterr().err == "error: label.min_score: got x, expected a number or null\n"


def test_missing_settings_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job(LabelRun, lambda _: 0, prog="x", argv=["--checkpoint", "c"]) == 2
    assert capsys.readouterr().err == "error: missing --images, --output; see --help\n"


@pytest.mark.parametrize("run_type", [TrainRun, LabelRun, EvaluateRun])
def test_help_shows_every_setting(run_type: type, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_job(run_type, lambda _: 0, prog="x", argv=["--help"]) == 0
    shown = capsys.readouterr().out
    # After its name and placeholder each setting has a text of its own, then its type.
    for name in setting_names(run_type):
        entry = shown.split(f"\n  --{name} ")[-1].split("\n  --")[0].split()
        assert {"(type:", "(required,"} & set(entry), name
        assert len(" ".join(entry).split("type:")[0].split()) > 3, name


def test_printed_configuration_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(["--train.steps", "7", "--print_config"]) == (0, [])
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["train"]["steps"] == 7
    _, (run,) = run_train(["--config", write_yaml(tmp_path, printed)])
    assert run.train.steps == 7


def test_what_the_action_says_is_the_exit_code() -> None:
    assert run_job(EvaluateRun, lambda _: 3, prog="x", argv=["--labels", "a", "--annotations", "b"]) == 3


def test_a_user_error_of_the_action_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def action(_: EvaluateRun) -> int:
        raise StorageError("somewhere:\n  no such file")

    assert run_job(action=action, run_type=EvaluateRun, prog="x", argv=["--labels", "a", "--annotations", "b"]) == 2
    assert capsys.readouterr().err == "error: somewhere: no such file\n"


def test_our_own_bugs_keep_their_traceback() -> None:
    def action(_: EvaluateRun) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_job(EvaluateRun, action, prog="x", argv=["--labels", "a", "--annotations", "b"])


def test_an_interrupt_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def action(_: EvaluateRun) -> int:
        raise KeyboardInterrupt

    assert run_job(EvaluateRun, action, prog="x", argv=["--labels", "a", "--annotations", "b"]) == 130
    assert capsys.readouterr().err == "interrupted: the same command starts afresh\n"


@pytest.mark.parametrize(
    "command", ["train", "label", "verify", "evaluate", "export", "report", "convert", "priors", "propose", "demo"]
)
def test_help_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys\n"
        f"from jobs.{command} import main\n"
        "assert main(['--help']) == 0\n"
        "assert not {'torch', 'ray', 'pyarrow', 'numpy'} & set(sys.modules)\n"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parents[2])
    assert time.monotonic() - start < 20  # some 0.5 s on an idle machine


CONFIGS = sorted((Path(__file__).parents[2] / "jobs" / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    code, runs = run_train(["--config", str(path)])
    assert code == 0
    assert runs[0] != TrainRun(output="out")
