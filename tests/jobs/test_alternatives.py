"""A setting that stands for another one: whichever was given last counts."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs.alternatives import withdrawn
from jobs.cli import parse_run
from maskrcnn_core.config.checks import IN_PLACE_OF
from maskrcnn_core.errors import ConfigError
from pipelines.training.config import TrainConfig, TrainRun


@dataclass(frozen=True)
class Part:
    steps: int = 10
    epochs: float = field(default=0.0, metadata={IN_PLACE_OF: "steps"})
    at: tuple[float, ...] = field(default=(), metadata={IN_PLACE_OF: "steps"})


@dataclass(frozen=True)
class Whole:
    part: Part = field(default_factory=Part)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([[], []], []),
        ([["part.epochs"], []], []),
        ([["part.steps"], ["part.epochs"]], []),
        ([["part.epochs"], ["part.steps"]], ["--part.epochs=0.0"]),
        ([["part.at", "part.epochs"], ["part.steps"]], ["--part.epochs=0.0", "--part.at=[]"]),
        ([["part.epochs"], ["part.steps"], []], ["--part.epochs=0.0"]),
        ([["part.epochs"], ["part.steps"], ["part.epochs"]], []),
        ([["part.epochs", "part.steps"], []], []),
        ([["part.epochs", "part.steps"], ["part.steps"]], ["--part.epochs=0.0"]),
    ],
)
def test_the_last_source_counts(given: list[list[str]], expected: list[str]) -> None:
    assert withdrawn(Whole, given) == expected


def test_both_on_the_command_line_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match=r"part\.epochs: given beside part\.steps, whose place it takes"):
        withdrawn(Whole, [[], ["part.steps", "part.epochs"]])


def train_settings(*arguments: str) -> TrainConfig:
    return parse_run(TrainRun, prog="train", argv=["--output", "out", *arguments]).train


@pytest.mark.parametrize("joined", [False, True])
def test_steps_of_the_command_line_replace_a_files_epochs(tmp_path: Path, joined: bool) -> None:
    preset, other = tmp_path / "preset.yaml", tmp_path / "other.yaml"
    preset.write_text("train: {epochs: 12, decay_shares: [0.5], warmup_share: 0.1}\n")
    other.write_text("train: {steps: 300}\n")
    settings = train_settings("--config", str(preset))
    assert (settings.epochs, settings.decay_shares, settings.warmup_share) == (12.0, (0.5,), 0.1)
    given = ["--train.steps=50"] if joined else ["--train.steps", "50"]
    settings = train_settings("--config", str(preset), *given)
    assert (settings.steps, settings.epochs, settings.decay_shares, settings.warmup_share) == (50, 0.0, (0.5,), 0.1)
    settings = train_settings(f"--config={preset}", "--train.decay_steps", "[7]", "--train.warmup_steps", "3")
    assert (settings.epochs, settings.decay_shares, settings.warmup_share) == (12.0, (), 0.0)
    settings = train_settings("--config", str(preset), "--config", str(other))
    assert (settings.steps, settings.epochs) == (300, 0.0)
    settings = train_settings("--config", str(other), "--config", str(preset))
    assert (settings.steps, settings.epochs) == (300, 12.0)


def test_printed_settings_are_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_settings("--train.epochs", "3", "--print_config")
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert train_settings("--config", str(path)).epochs == 3.0
    assert train_settings("--config", str(path), "--train.steps", "9").epochs == 0.0
