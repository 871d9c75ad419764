from dataclasses import replace

import pytest
import torch

from jobs.benchmark import main
from maskrcnn_core.benchmark_config import BenchmarkRun
from pipelines import benchmark_training
from pipelines.benchmark_training import benchmark_train


def test_both_steps_are_measured_and_their_losses_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert main(["train", "--num_images", "1", "--rounds", "1", "--short_side", "96"]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    for text in (
        "1 images a step, 1 rounds",
        "roi_mask",
        "speed of the second against the first",
        "s of processor time",
    ):
        assert text in printed


def test_other_losses_end_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: object) -> dict[str, tuple[float, float]]:
        return {"roi_class": (1.0, 1.1)}

    monkeypatch.setattr(benchmark_training, "compared_losses", other)
    run = replace(BenchmarkRun(), num_images=1, rounds=1, short_side=64, threads=torch.get_num_threads())
    with pytest.raises(RuntimeError, match=r"roi_class: torchvision has 1\.0.*expected the same"):
        benchmark_train(run)
