import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from jobs.benchmark import main
from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.dense_loss import DenseLossConfig
from maskrcnn_core.config.model import Category, ModelConfig
from maskrcnn_core.data.generated.pictures import generate_dataset
from maskrcnn_core.errors import AnnotationError, CheckpointError, ConfigError, StorageError
from maskrcnn_core.model.build import build_detector
from maskrcnn_core.weights.checkpoint import save_checkpoint
from maskrcnn_core.weights.checkpoint_config import load_config
from pipelines.benchmarks import tradeoff
from pipelines.benchmarks.config import TradeoffRun
from pipelines.benchmarks.tradeoff import Setting, TradeoffPoint, benchmark_tradeoff, combinations, mark_front, measure
from tests.small_detector import FINDING


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TradeoffRun:
    """A detector of random weights, and three generated images with their annotations."""
    folder = tmp_path_factory.mktemp("tradeoff")
    annotations = generate_dataset(folder / "set", num_images=3, image_size=(64, 80))
    categories = tuple(Category(e["id"], e["name"]) for e in json.loads(annotations.read_text())["categories"])
    config = replace(FINDING, categories=categories)
    torch.manual_seed(0)
    save_checkpoint(folder / "checkpoint", build_detector(config, load_pretrained=False).state_dict(), config)
    return TradeoffRun(
        checkpoint=str(folder / "checkpoint"),
        images=str(folder / "set" / "images"),
        annotations=str(annotations),
        output=str(folder / "out"),
        threads=1,
    )


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each combination costs seconds; one test has them."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(tradeoff, "measure_apart", measure)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert torch.get_num_threads() == threads


def point(milliseconds: float, ap: float) -> TradeoffPoint:
    return TradeoffPoint(Setting("folder", "trunk", 64, 10), {"bbox": 0.9, "segm": ap}, milliseconds, 1.0, 2.0)


def test_checkpoints_of_one_trunk_are_told_apart() -> None:
    def of(folder: str, trunk: str) -> TradeoffPoint:
        return replace(point(1, 0.5), setting=Setting(folder, trunk, 64, 10))

    names = tradeoff._series_names([of("a", "resnet18"), of("b", "resnet18"), of("c", "vgg16"), of("c", "vgg16")])
    assert names == {"a": "resnet18, a", "b": "resnet18, b", "c": "vgg16"}


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(10, 0.2), (20, 0.3), (30, 0.25), (5, 0.1)], [True, True, False, True]),
        ([(10, 0.2), (10, 0.3)], [False, True]),  # as fast, less accurate
        ([(10, 0.2), (20, 0.2)], [True, False]),  # as accurate, slower
        ([(10, 0.2), (10, 0.2)], [True, True]),  # neither beats the other
        ([(10, -1.0)], [True]),
    ],
)
def test_front(points: Sequence[tuple[float, float]], front: list[bool]) -> None:
    assert [one.on_front for one in mark_front([point(*values) for values in points])] == front


def test_combinations_by_default_are_shares_of_what_the_checkpoint_does(run: TradeoffRun) -> None:
    found = [(one.trunk, one.short_side, one.proposals) for one in combinations(run)]
    sides, counts = (32, 64), (2, 7, 20)  # 48 pixels are no multiple of 32
    assert found == [("efficientnet_lite0", side, count) for side in sides for count in counts]
    both = replace(run, checkpoint=f"{run.checkpoint}, {run.checkpoint}", short_sides=(64,), proposals=(5, 10))
    assert [(one.short_side, one.proposals) for one in combinations(both)] == [(64, 5), (64, 10)] * 2


@pytest.mark.usefixtures("in_this_process")
def test_a_one_stage_detector_has_no_proposals_to_choose(run: TradeoffRun, tmp_path: Path) -> None:
    config = replace(
        FINDING,
        categories=load_config(run.checkpoint).categories,
        dense=replace(FINDING.dense, finds="detections", loss=DenseLossConfig("focal")),
        box_head=replace(FINDING.box_head, enabled=False),
        mask_head=replace(FINDING.mask_head, enabled=False),
    )
    save_checkpoint(tmp_path / "one", build_detector(config, load_pretrained=False).state_dict(), config)
    alone = replace(run, checkpoint=str(tmp_path / "one"), short_sides=(48, 64), proposals=(5, 10), rounds=1)
    assert [(one.short_side, one.proposals) for one in combinations(alone)] == [(48, 0), (64, 0)]
    points = benchmark_tradeoff(replace(alone, short_sides=(64,), output=str(tmp_path / "out"))).points
    assert [set(point.ap) for point in points] == [{"bbox"}]


@pytest.mark.usefixtures("in_this_process")
def test_table_and_plot(run: TradeoffRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []

    def build(config: ModelConfig, load_pretrained: bool) -> torch.nn.Module:
        built.append(config.dense.post_nms_test)
        return build_detector(config, load_pretrained=load_pretrained)

    monkeypatch.setattr(tradeoff, "build_detector", build)
    seen: list[tuple[TradeoffPoint, int]] = []
    small = replace(run, output=str(tmp_path / "out"), short_sides=(32, 64), proposals=(4, 20), num_images=2)
    found = benchmark_tradeoff(small, lambda one, total: seen.append((one, total)))
    assert [total for _, total in seen] == [4] * 4
    assert built == [4, 20, 4, 20]
    assert found.images == 2
    assert found.files == tuple(
        str(tmp_path / "out" / f"tradeoff.{ending}") for ending in ("json", "csv", "png", "svg")
    )
    document = json.loads((tmp_path / "out" / "tradeoff.json").read_text())
    assert [(p["setting"]["short_side"], p["setting"]["proposals"]) for p in document["points"]] == [
        (32, 4),
        (32, 20),
        (64, 4),
        (64, 20),
    ]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "tradeoff.csv").read_text())))
    for one, row, stored in zip(found.points, rows, document["points"], strict=True):
        assert 0 <= one.detections <= FINDING.box_head.max_detections
        assert one.milliseconds > 0
        assert one.megabytes > 50
        assert float(row["milliseconds"]) == one.milliseconds == stored["milliseconds"]
        assert {f"ap_{kind}" for kind in one.ap} <= set(row)
        assert int(row["on_front"]) == one.on_front
    assert any(one.on_front for one in found.points)
    with Image.open(tmp_path / "out" / "tradeoff.png") as plot:
        assert plot.width > 600
    assert b"</svg>" in (tmp_path / "out" / "tradeoff.svg").read_bytes()


@pytest.mark.usefixtures("in_this_process")
def test_numbers_are_those_of_labelling_and_scoring(run: TradeoffRun, tmp_path: Path) -> None:
    """The same as the predictor of the unchanged checkpoint, where the combination is its own setting."""
    from maskrcnn_core.evaluation.coco import evaluate_coco
    from maskrcnn_core.inference.predictor import load_predictor
    from maskrcnn_core.inference.settings import PredictorSettings
    from maskrcnn_core.records.labels import record_schema, records_to_table

    own = replace(run, output=str(tmp_path), short_sides=(64,), proposals=(20,))
    (found,) = benchmark_tradeoff(own).points
    document = json.loads(Path(run.annotations).read_text())
    predictor = load_predictor(run.checkpoint, PredictorSettings(apply_exif=False))
    contents = [(Path(run.images) / image["file_name"]).read_bytes() for image in document["images"]]
    records = [predictor.predict([content])[0] for content in contents]
    ids = [image["id"] for image in document["images"]]
    table = records_to_table(ids, [""] * 3, records, "", record_schema(predictor.categories))
    assert found.ap == {kind: stats[0] for kind, stats in evaluate_coco(document, table).stats.items()}
    assert found.detections == pytest.approx(sum(len(record.detections) for record in records) / 3)


@pytest.mark.slow  # a process that loads torch
def test_the_command(run: TradeoffRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    arguments = ["--checkpoint", run.checkpoint, "--images", run.images, "--annotations", run.annotations]
    arguments += ["--short_sides", "[64]", "--proposals", "[10]", "--threads", "1", "--clock", "cpu"]
    assert main(["tradeoff", *arguments, "--output", str(tmp_path)]) == 0
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("[1/1] efficientnet_lite0, 64 px, 10 proposals: ")
    assert any(line.split()[-1:] == ["front"] for line in lines)
    assert any(line.startswith("3 images one at a time, 1 round, median processor time; ") for line in lines)
    assert lines[-1].startswith(f"Table and plot: {tmp_path}/tradeoff.json, ")


def test_mistakes_come_before_any_work(run: TradeoffRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tradeoff, "measure_apart", lambda *_: pytest.fail("worked"))
    with pytest.raises(CheckpointError, match="none"):
        benchmark_tradeoff(replace(run, checkpoint=str(tmp_path / "none")))
    with pytest.raises(StorageError, match=r"none\.json: no such file"):
        benchmark_tradeoff(replace(run, annotations=str(tmp_path / "none.json")))
    with pytest.raises(StorageError, match="is missing; expected the folder of the annotations' file names"):
        benchmark_tradeoff(replace(run, images=str(tmp_path)))
    with pytest.raises(StorageError, match="output is a file"):
        benchmark_tradeoff(replace(run, output=run.annotations))
    (tmp_path / "bad.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}')
    with pytest.raises(AnnotationError, match="there are no images"):
        benchmark_tradeoff(replace(run, annotations=str(tmp_path / "bad.json")))
    config = replace(FINDING, dense=DenseConfig(enabled=False))
    save_checkpoint(tmp_path / "no_rpn", build_detector(config, load_pretrained=False).state_dict(), config)
    with pytest.raises(ConfigError, match="no detector with proposals of its own"):
        benchmark_tradeoff(replace(run, checkpoint=str(tmp_path / "no_rpn")))
