"""Systems beside each other, and what a step of training costs."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from jobs.benchmark import main
from maskrcnn_core.config.dense_loss import DenseLossConfig
from maskrcnn_core.config.model import Category
from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.errors import CheckpointError, ConfigError, StorageError
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.weights.checkpoint import save_checkpoint
from pipelines.benchmarks import landscape
from pipelines.benchmarks.config import TradeoffRun
from pipelines.benchmarks.landscape import benchmark_landscape
from pipelines.benchmarks.landscape_config import LandscapeRun, StepCostRun
from pipelines.benchmarks.landscape_plot import draw_landscape
from pipelines.benchmarks.step_cost import benchmark_steps
from pipelines.benchmarks.tradeoff import benchmark_tradeoff, measure
from pipelines.training.config import TrainConfig
from pipelines.training.data_config import DataConfig, DatasetConfig
from tests.small_detector import FINDING


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two detectors of random weights, of one stage and of two, and three generated images with their annotations."""
    folder = tmp_path_factory.mktemp("landscape")
    annotations = generate_dataset(folder / "set", num_images=3, image_size=(64, 80))
    categories = tuple(Category(e["id"], e["name"]) for e in json.loads(annotations.read_text())["categories"])
    two = replace(FINDING, categories=categories)
    dense = replace(FINDING.dense, finds="detections", loss=DenseLossConfig("focal"))
    off = replace(FINDING.mask_head, enabled=False)
    one = replace(two, dense=dense, box_head=replace(FINDING.box_head, enabled=False), mask_head=off)
    for name, config in (("one", one), ("two", two)):
        torch.manual_seed(0)
        save_checkpoint(folder / name, build_detector(config, load_pretrained=False).state_dict(), config)
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> LandscapeRun:
    return LandscapeRun(
        checkpoint=f"RetinaNet={folder / 'one'}, Mask R-CNN = {folder / 'two'}",
        images=str(folder / "set" / "images"),
        annotations=str(folder / "set" / "annotations.json"),
        output=str(tmp_path / "out"),
        threads=1,
    )


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each system costs seconds; one test has them."""
    monkeypatch.setattr(landscape, "measure_apart", measure)
    monkeypatch.setattr("pipelines.benchmarks.tradeoff.measure_apart", measure)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


@pytest.mark.usefixtures("in_this_process")
def test_one_table_and_one_plot(run: LandscapeRun) -> None:
    found = benchmark_landscape(run)
    assert [(one.name, one.stages) for one in found.points] == [("RetinaNet", 1), ("Mask R-CNN", 2)]
    assert [set(one.point.ap) for one in found.points] == [{"bbox"}, {"bbox", "segm"}]
    assert all(set(one.point.ap50) == set(one.point.ap) for one in found.points)
    assert [one.point.setting.proposals for one in found.points] == [0, FINDING.dense.post_nms_test]
    assert found.images == 3
    assert any(one.point.on_front for one in found.points)
    output = Path(run.output)
    rows = list(csv.DictReader((output / "landscape.csv").read_text().splitlines()))
    assert [row["system"] for row in rows] == ["RetinaNet", "Mask R-CNN"]
    assert rows[0]["ap50_segm"] == ""
    assert float(rows[1]["ap50_bbox"]) == found.points[1].point.ap50["bbox"]
    document = json.loads((output / "landscape.json").read_text())
    assert document["points"][1]["point"]["setting"]["short_side"] == FINDING.input.short_side
    with Image.open(output / "landscape.png") as plot:
        assert plot.width > 600
    assert "Mask R-CNN" in (output / "landscape.svg").read_text()  # as a comment beside its outlines


@pytest.mark.usefixtures("in_this_process")
def test_numbers_are_those_of_the_sweep(run: LandscapeRun, folder: Path, tmp_path: Path) -> None:
    """The same accuracy as of `tradeoff` at the checkpoint's own size and number of proposals."""
    (_, two) = benchmark_landscape(run).points
    sweep = TradeoffRun(
        checkpoint=str(folder / "two"),
        images=run.images,
        annotations=run.annotations,
        output=str(tmp_path / "sweep"),
        short_sides=(FINDING.input.short_side,),
        proposals=(FINDING.dense.post_nms_test,),
        threads=1,
    )
    (point,) = benchmark_tradeoff(sweep).points
    assert (two.point.ap, two.point.ap50, two.point.detections) == (point.ap, point.ap50, point.detections)


def test_systems_have_names_or_none(run: LandscapeRun) -> None:
    assert replace(run, checkpoint="a, SSD=b,,").systems == (("", "a"), ("SSD", "b"))
    for wrong in ("", "SSD=", "SSD=a,SSD=b"):
        with pytest.raises(ConfigError, match="checkpoint: got"):
            replace(run, checkpoint=wrong)


def test_mistakes_come_before_any_work(run: LandscapeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landscape, "measure_apart", lambda *_: pytest.fail("worked"))
    with pytest.raises(CheckpointError, match="none"):
        benchmark_landscape(replace(run, checkpoint=str(tmp_path / "none")))
    with pytest.raises(StorageError, match="output is a file"):
        benchmark_landscape(replace(run, output=run.annotations))
    with pytest.raises(StorageError, match="is missing; expected the folder"):
        benchmark_landscape(replace(run, images=str(tmp_path)))


def test_the_same_points_give_the_same_plot() -> None:
    points = [("SSD", 1, 20.0, 0.2), ("Mask R-CNN", 2, 60.0, 0.4)]
    pictures = draw_landscape(points, "milliseconds")
    assert pictures["png"] == draw_landscape(points, "milliseconds")["png"]
    assert draw_landscape(points[:1], "milliseconds")["png"][:4] == b"\x89PNG"
    assert draw_landscape([("a", 1, 5.0, 0.0)], "milliseconds")["svg"].endswith(b"</svg>\n")


def test_what_a_budget_buys(folder: Path) -> None:
    """Twice the seconds buy twice the steps of the same cost; the cost is above 0, and no run is left behind."""
    data = DatasetConfig(str(folder / "set" / "images"), str(folder / "set" / "annotations.json"))
    before = torch.get_num_threads()
    run = StepCostRun(
        FINDING, DataConfig(train=data), TrainConfig(batch_size=2, warmup_steps=0), seconds=1e6, measured=2
    )
    cost = benchmark_steps(run)
    assert cost.images == 2
    assert cost.seconds > 0
    assert cost.steps == int(1e6 / cost.seconds)
    assert torch.get_num_threads() == before
    assert benchmark_steps(replace(run, seconds=1e-9)).steps == 1


def test_a_budget_needs_data(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train\.annotations"):
        StepCostRun(FINDING)


@pytest.mark.slow  # processes that load torch
def test_the_commands(run: LandscapeRun, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    arguments = ["--checkpoint", run.checkpoint, "--images", run.images, "--annotations", run.annotations]
    arguments += ["--threads", "1", "--clock", "cpu", "--output", run.output]
    assert main(["landscape", *arguments]) == 0
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("[1/2] RetinaNet: ")
    assert any(line.split()[:3] == ["Mask", "R-CNN", "2"] for line in lines)
    assert any(line.split()[-3:] == ["AP", "AP50", "ms/image"] for line in lines)
    assert lines[-1].startswith(f"Table and plot: {run.output}/landscape.json, ")
    data = ["--data.train.images", run.images, "--data.train.annotations", run.annotations]
    small = ["--model.backbone.pretrained", "false", "--model.input.short_side", "64", "--measured", "1"]
    preset = "jobs/configs/one_stage/yolov2_lite0.yaml"
    assert main(["steps", "--config", preset, *data, *small, "--train.batch_size", "2", "--seconds", "1000"]) == 0
    assert "1000 s buy " in capsys.readouterr().out
