"""The comparison of training: all ways measured, in single steps and loops, and nothing where the losses differ."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.benchmark import main
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.dense.shared_head import SharedHead
from pipelines.benchmarks import training
from pipelines.benchmarks.config import BenchmarkRun
from pipelines.benchmarks.training import annotated_images, benchmark_train
from pipelines.benchmarks.training_loops import (
    EveryAnchorHead,
    our_batches,
    our_inputs,
    peer_batches,
    peer_inputs,
)


def test_all_steps_are_measured_and_their_losses_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    figures, trace = tmp_path / "figures.json", tmp_path / "trace.json"
    files = ["--output", str(figures), "--trace", str(trace)]
    try:
        small = ["--num_images", "1", "--rounds", "1", "--short_side", "96", "--precision", "bfloat16"]
        assert main(["train", *small, *files, "--ablate", "true"]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    for text in ("1 images a step, 1 rounds", "roi_mask", "ours, bfloat16", "s of processor time", "dearest operators"):
        assert text in printed
    found = json.loads(figures.read_text())
    names = [way["name"] for way in found["ways"]]
    assert names[1:3] == ["ours, float32", "ours, bfloat16"]
    assert names[3:] == [
        "ours, bfloat16, contiguous",
        "ours, bfloat16, RPN losses of all anchors",
        "ours, bfloat16, foreach optimiser",
    ]
    assert (found["steps"], found["loaders"], found["kernels"]) == (1, 0, [])
    assert 0.5 < sum(share for _, share in found["operators"]) <= 1.0
    assert json.loads(trace.read_text())["traceEvents"]


def test_loops_with_loaders_train_on_the_same_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_LEAD", 1)
    threads = torch.get_num_threads()
    figures = tmp_path / "figures.json"
    size = ["--num_images", "1", "--short_side", "64", "--long_side", "96"]
    try:
        assert main(["train", *size, "--rounds", "1", "--steps", "2", "--loaders", "2", "--output", str(figures)]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    for text in ("1 rounds of 2 steps", "by 2 loaders", "64 x 96 pixels", "1.0 objects each", "waiting for inputs"):
        assert text in printed
    ways = json.loads(figures.read_text())["ways"]
    assert [way["images"] for way in ways] == [2, 2]
    assert all(0.0 <= way["waiting"] < 1.0 for way in ways)


def test_loaders_make_the_inputs_of_the_foreground() -> None:
    images = annotated_images(2, (64, 96))
    config = ModelConfig()
    batch, targets = our_inputs(config, images)
    peer_images, peer_targets = peer_inputs(images)
    for loaders in (0, 1):
        ours = list(our_batches(config, images, steps=2, loaders=loaders, dtype=torch.float32)())
        theirs = list(peer_batches(images, steps=2, loaders=loaders)())
        assert len(ours) == len(theirs) == 2
        assert torch.equal(ours[1][0].pixels, batch.pixels)
        assert torch.equal(ours[1][1].boxes, targets.boxes)
        assert torch.equal(theirs[1][0][1], peer_images[1])
        assert torch.equal(theirs[1][1][1]["masks"], peer_targets[1]["masks"])
    assert batch.pixels.shape == (2, 3, 64, 96)
    rounded = next(our_batches(config, images, steps=1, loaders=1, dtype=torch.bfloat16)())[0].pixels
    assert torch.equal(rounded, batch.pixels.to(torch.bfloat16))
    assert rounded.is_contiguous(memory_format=torch.channels_last)


def test_all_anchors_at_once_give_the_outputs_of_the_sampled_ones() -> None:
    torch.manual_seed(0)
    head = SharedHead(8, 3, 1)
    pyramid = [torch.randn(2, 8, 8, 12), torch.randn(2, 8, 4, 6)]
    index = torch.tensor([[0, 5, 287, 300], [1, 2, 288, 359]])  # 3 anchors on each of 96 and 24 cells
    every = EveryAnchorHead(head)
    for sampled, gathered in zip(head.at(pyramid, index), every.at(pyramid, index), strict=True):
        torch.testing.assert_close(sampled, gathered)
    plain, kept = head(pyramid), every(pyramid)
    for levels, kept_levels in ((plain.logits, kept.logits), (plain.deltas, kept.deltas)):
        for level, kept_level in zip(levels, kept_levels, strict=True):
            assert torch.equal(level, kept_level)


def test_images_are_no_higher_than_wide() -> None:
    with pytest.raises(ConfigError, match=r"long_side: got 100, expected 0, or at least short_side \(800\)"):
        BenchmarkRun(long_side=100)


def test_other_losses_end_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: object) -> dict[str, tuple[float, float]]:
        return {"roi_class": (1.0, 1.1)}

    monkeypatch.setattr(training, "compared_losses", other)
    run = replace(BenchmarkRun(), num_images=1, rounds=1, short_side=64, threads=torch.get_num_threads())
    with pytest.raises(RuntimeError, match=r"roi_class: torchvision has 1\.0.*expected the same"):
        benchmark_train(run)
