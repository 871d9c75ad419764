from pathlib import Path

import pytest

from jobs.cli import parse_run
from jobs.train import main
from pipelines.training.config import TrainRun
from pipelines.training.schedule import require_end_of_warmup, schedule_in_steps, schedule_remarks

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "jobs" / "configs").rglob("*.yaml"))


def parse(path: Path) -> TrainRun:
    return parse_run(TrainRun, prog="train", argv=["--config", str(path), "--output", "runs/one"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_parses_and_differs_from_the_defaults(path: Path) -> None:
    run = parse(path)
    assert run.output == "runs/one"
    assert (run.model, run.train) != (TrainRun("").model, TrainRun("").train)
    assert not run.data.train.images, "data sets are the user's"


def test_the_configurations_are_there() -> None:
    assert {path.stem for path in CONFIGS} >= {"mask_rcnn_r50_fpn", "mask_rcnn_lite0_fpn", "nuclei"}


def test_nuclei_has_small_anchors_and_a_short_schedule() -> None:
    run = parse(next(path for path in CONFIGS if path.stem == "nuclei"))
    assert run.model.dense.anchors.sizes == (8, 16, 32, 64, 128)
    assert run.model.backbone.name == "efficientnet_lite0"
    schedule = schedule_in_steps(run.train, 200)
    assert (schedule.steps, schedule.warmup_steps, schedule.validate_every) == (500, 100, 100)
    assert (schedule.schedule, schedule.peak_learning_rate) == ("cosine", 0.015)


@pytest.mark.parametrize("name", ["mask_rcnn_lite0_fpn", "mask_keypoint_lite0_fpn", "nuclei"])
@pytest.mark.parametrize("images", [1, 8, 24, 200, 3000, 118_000])
def test_presets_for_ones_own_data_fit_any_number_of_images(name: str, images: int) -> None:
    asked = load(name).train
    schedule = schedule_in_steps(asked, images)
    require_end_of_warmup(schedule)
    assert schedule_remarks(schedule) == ()
    assert schedule.steps * asked.batch_size >= asked.epochs * images
    assert schedule.steps // schedule.validate_every <= asked.validations


def load(name: str) -> TrainRun:
    return parse(next(path for path in CONFIGS if path.stem == name))


@pytest.mark.parametrize("schedule", ["1x", "3x"])
@pytest.mark.parametrize(
    ("name", "pyramid", "backbone"),
    [
        ("mask_rcnn_r50_fpn", "fpn", "resnet50"),
        ("mask_rcnn_r101_fpn", "fpn", "resnet101"),
        ("mask_rcnn_r50_c4", "c4", "resnet50"),
        ("mask_rcnn_r50_dc5", "dc5", "resnet50"),
        ("keypoint_rcnn_r50_fpn", "fpn", "resnet50"),
    ],
)
def test_detectron2s_recipes(name: str, pyramid: str, backbone: str, schedule: str) -> None:
    run = load(f"detectron2_{name}_{schedule}")
    model, train = run.model, run.train
    steps, decay = (90_000, (60_000, 80_000)) if schedule == "1x" else (270_000, (210_000, 250_000))
    assert (train.steps, train.decay_steps, train.batch_size) == (steps, decay, 16)
    assert train.peak_learning_rate == 0.02
    assert (train.weight_decay, train.weight_decay_bias, train.weight_decay_norm) == (1e-4, 1e-4, 0.0)
    assert train.short_sides == (640, 672, 704, 736, 768, 800)
    assert (train.warmup_steps, train.warmup_factor) == (1000, 0.001)
    assert (model.pyramid.kind, model.backbone.name, model.backbone.frozen_stages) == (pyramid, backbone, 2)
    assert model.input.resize == "antialias"
    assert (model.regions.sampling_ratio, model.regions.aligned) == (0, True)
    assert model.dense.smooth_l1_beta == 0
    if name.startswith("keypoint"):
        assert model.keypoint_head.enabled
        assert not model.mask_head.enabled
        assert (model.dense.post_nms_train, model.box_head.smooth_l1_beta) == (1500, 0.5)
        return
    assert model.box_head.smooth_l1_beta == 0
    if pyramid == "fpn":
        assert (model.dense.pre_nms_train, model.dense.post_nms_train, model.input.divisor) == (2000, 1000, 32)
    else:
        assert (model.dense.pre_nms_train, model.dense.post_nms_train, model.dense.pre_nms_test) == (12_000, 2000, 6000)
        assert model.dense.anchors.every_level
    if pyramid == "c4":
        assert (model.box_head.layers, model.mask_head.layers, model.regions.box_resolution) == (0, 0, 14)


def test_torchvisions_recipe() -> None:
    run = load("torchvision_mask_rcnn_r50_fpn")
    epoch = 7329  # batches of 16 in the 117,266 images of train2017 that have objects
    assert (run.train.steps, run.train.decay_steps) == (26 * epoch, (16 * epoch, 22 * epoch))
    assert (run.train.peak_learning_rate, run.train.batch_size, run.train.aspect_ratio_factor) == (0.02, 16, 3)
    assert run.train.weight_decay == run.train.weight_decay_bias == run.train.weight_decay_norm == 1e-4
    assert not run.model.regions.aligned
    assert run.model.dense.anchors.rounded
    assert run.model.dense.post_nms_train == 2000


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS if path.stem.endswith("100ep")])
def test_large_scale_jitter_recipes(name: str) -> None:
    run = load(name)
    assert (run.train.steps, run.train.batch_size) == (184_375, 64)
    assert run.train.steps * 64 == pytest.approx(100 * 118_000, rel=0.001)
    assert run.train.augment.jitter_scale == (0.1, 2.0)
    assert run.train.augment.crop == (1024, 1024)
    assert run.train.augment.copy_paste == (0.5 if name.startswith("copy_paste") else 0.0)
    assert (run.train.peak_learning_rate, run.train.weight_decay) == (0.1, 4e-5)
    assert (run.model.dense.convs, run.model.box_head.convs, run.model.box_head.layers) == (2, 4, 1)


def test_half_the_batch_has_half_the_rate() -> None:
    path = next(path for path in CONFIGS if path.stem == "detectron2_mask_rcnn_r50_fpn_1x")
    run = parse_run(TrainRun, prog="train", argv=["--config", str(path), "--output", "x", "--train.batch_size", "8"])
    assert run.train.peak_learning_rate == pytest.approx(0.01)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_says_where_it_is_from(path: Path) -> None:
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--train.augment.copy_paste", "0.5"], "train.augment.copy_paste: got 0.5, expected 0 where"),
        (["--train.augment.jitter_scale", "[2.0, 0.1]"], "train.augment.jitter_scale: got (2.0, 0.1), expected"),
        (["--train.augment.jitter_scale", "[0.5]"], "train.augment.jitter_scale: got (0.5,), expected two numbers"),
        (["--train.ema_decay", "1.0"], "train.ema_decay: got 1.0, expected"),
        (["--train.accumulate", "0"], "train.accumulate: got 0, expected"),
    ],
)
def test_mistakes_in_the_new_settings_are_one_line(
    settings: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", "x", *settings]) == 2
    assert message in capsys.readouterr().err
