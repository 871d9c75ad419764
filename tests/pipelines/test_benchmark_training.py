"""The comparison of training steps: all ways measured, and nothing where the losses differ."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.benchmark import main
from maskrcnn_core.benchmark_config import BenchmarkRun
from pipelines import benchmark_training
from pipelines.benchmark_training import benchmark_train


def test_all_steps_are_measured_and_their_losses_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    figures, trace = tmp_path / "figures.json", tmp_path / "trace.json"
    files = ["--output", str(figures), "--trace", str(trace)]
    try:
        small = ["--num_images", "1", "--rounds", "1", "--short_side", "96", "--precision", "bfloat16"]
        assert main(["train", *small, *files]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    for text in ("1 images a step, 1 rounds", "roi_mask", "ours, bfloat16", "s of processor time", "dearest operators"):
        assert text in printed
    found = json.loads(figures.read_text())
    assert [way["name"].split(",")[1] for way in found["ways"]] == [" float32", " float32", " bfloat16"]
    assert 0.5 < sum(share for _, share in found["operators"]) <= 1.0
    assert json.loads(trace.read_text())["traceEvents"]


def test_other_losses_end_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: object) -> dict[str, tuple[float, float]]:
        return {"roi_class": (1.0, 1.1)}

    monkeypatch.setattr(benchmark_training, "compared_losses", other)
    run = replace(BenchmarkRun(), num_images=1, rounds=1, short_side=64, threads=torch.get_num_threads())
    with pytest.raises(RuntimeError, match=r"roi_class: torchvision has 1\.0.*expected the same"):
        benchmark_train(run)
