"""The benchmark of training input: all ways are measured on the same images, and both sides make the same of them."""

import json
from pathlib import Path

import pytest
import torch

from jobs.benchmark import main
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.data.coco.dataset import load_coco
from maskrcnn_core.data.dataset import CocoTrainingData, Sample
from maskrcnn_core.data.files import Folder
from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.data.targets import TargetRule
from maskrcnn_core.errors import ConfigError
from pipelines.benchmarks.config import InputBenchmarkRun
from pipelines.benchmarks.reference_loader import ReferenceData, Transformed, as_tuples
from pipelines.training.batch import packed_batch


def test_both_sides_prepare_the_same_images(tmp_path: Path) -> None:
    """The pixels that the network takes in are the same up to the decoders' rounding, and so are the boxes."""
    annotations = generate_dataset(tmp_path, num_images=4, seed=1, image_size=(96, 128))
    dataset = load_coco(str(annotations), require_masks=True)
    rule = InputConfig(short_side=160, long_side=400)
    ours = CocoTrainingData(dataset, Folder(str(tmp_path / "images")), rule, TargetRule())
    reference = ReferenceData(dataset, str(tmp_path / "images"))
    samples = [Sample(index, flip=index == 1, short_side=160) for index in range(4)]
    images, targets = Transformed(rule)([reference[sample] for sample in samples])
    batch = packed_batch([ours[sample] for sample in samples], rule=rule, dtype=torch.float32)
    found = batch.images.to("cpu")
    assert images.tensors.shape == found.pixels.shape
    assert (images.tensors - found.pixels).abs().mean() < 0.02
    assert [tuple(size) for size in images.image_sizes] == [tuple(size) for size in found.input_sizes.tolist()]
    for index, target in enumerate(targets):
        learnt = batch.targets.valid[index]
        assert int(learnt.sum()) == len(target["boxes"]) == len(target["masks"])
        assert target["masks"].shape[1:] == images.image_sizes[index]
        torch.testing.assert_close(target["boxes"], batch.targets.boxes[index][learnt], atol=2.0, rtol=0)
    raw, _ = as_tuples([reference[sample] for sample in samples])
    assert [list(image.shape[1:]) for image in raw] == ours.sizes.tolist()
    assert all(0.0 <= image.min() <= image.max() <= 1.0 for image in raw)


def test_all_ways_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    small = ["--num_images", "4", "--batch", "2", "--rounds", "1", "--short_side", "64", "--processes", "1"]
    assert main(["input", *small, "--output", str(figures)]) == 0
    printed = capsys.readouterr().out
    for text in ("4 images in batches of 2, 1 processes, 1 rounds", "images/s a core", "loader and transform"):
        assert text in printed
    ways = json.loads(figures.read_text())["ways"]
    assert [way["name"].startswith("ours") for way in ways] == [False, True, False, True]
    assert all(way["images_per_second"] > 0 and way["images_per_core_second"] > 0 for way in ways)
    assert [ways[place]["ratio"] for place in (0, 2)] == [1.0, 1.0]


def test_images_and_annotations_belong_together() -> None:
    with pytest.raises(ConfigError, match="annotations: got '', expected a COCO file together with images"):
        InputBenchmarkRun(images="pictures")
