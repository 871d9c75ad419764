"""Epochs and shares of a run, in steps."""

import json
from pathlib import Path
from typing import Any

import pytest

from maskrcnn_core.errors import ConfigError
from maskrcnn_core.training.repeat_factors import dataset_repeat_factors
from maskrcnn_core.training.sampler import BatchPlan
from pipelines.training.config import TrainConfig
from pipelines.training.datasets import training_data
from pipelines.training.schedule import (
    images_per_epoch,
    require_end_of_warmup,
    schedule_in_steps,
    schedule_remarks,
)
from tests.pipelines.training.test_run import small_run, write_data


@pytest.mark.parametrize(
    ("settings", "epoch_images", "steps"),
    [
        ({"epochs": 12, "batch_size": 8}, 3000, 4500),
        ({"epochs": 10, "batch_size": 4}, 200, 500),
        ({"epochs": 1, "batch_size": 8}, 9, 2),  # no image is left out
        ({"epochs": 0.5, "batch_size": 1}, 7, 4),
        ({"epochs": 0.001, "batch_size": 16}, 5, 1),
        ({"epochs": 0.1, "batch_size": 1}, 30, 3),  # 0.1 x 30 is a little more than 3
        ({"epochs": 3, "batch_size": 100}, 5, 1),
        ({"epochs": 2, "batch_size": 2}, 10.5, 11),
        ({"steps": 77, "batch_size": 8}, 3000, 77),
    ],
)
def test_steps_of_epochs(settings: dict[str, Any], epoch_images: float, steps: int) -> None:
    assert schedule_in_steps(TrainConfig(**settings), epoch_images).steps == steps


def test_shares_of_the_run() -> None:
    asked = TrainConfig(
        epochs=12, batch_size=8, warmup_share=0.05, decay_shares=(2 / 3, 0.89), validations=12, decay_steps=(5, 6)
    )
    found = schedule_in_steps(asked, 3000)
    assert (found.steps, found.warmup_steps, found.decay_steps, found.validate_every) == (4500, 225, (3000, 4005), 375)
    assert (found.epochs, found.warmup_share, found.decay_shares, found.validations) == (12, 0.05, (2 / 3, 0.89), 12)
    assert schedule_in_steps(found, 3000) == found


def test_shares_of_a_run_of_given_steps() -> None:
    found = schedule_in_steps(TrainConfig(steps=500, warmup_share=0.2, decay_shares=(0.5,), validations=3), 200)
    assert (found.steps, found.warmup_steps, found.decay_steps, found.validate_every) == (500, 100, (250,), 167)


def test_what_is_not_asked_for_stays() -> None:
    settings = TrainConfig(steps=500, warmup_steps=7, decay_steps=(100, 200), validate_every=9)
    assert schedule_in_steps(settings, 200) == settings


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_hardly_any_step_has_a_schedule(steps: int) -> None:
    asked = TrainConfig(steps=steps, warmup_share=0.99, decay_shares=(0.67, 0.89), validations=12)
    found = schedule_in_steps(asked, 200)
    assert found.warmup_steps < steps
    require_end_of_warmup(found)
    assert found.decay_steps
    assert found.validate_every == 1


def test_a_run_beyond_all_bounds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.steps: got 10000000000"):
        schedule_in_steps(TrainConfig(epochs=1e6, batch_size=1), 10_000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, r"train\.epochs: got -1, expected 0 to"),
        ({"warmup_share": 1.0}, r"train\.warmup_share: got 1\.0, expected a number from 0, below 1"),
        ({"warmup_share": -0.1}, r"train\.warmup_share: got"),
        ({"decay_shares": (0.9, 0.6)}, r"train\.decay_shares: got \(0\.9, 0\.6\), expected increasing numbers"),
        ({"decay_shares": (0.5, 0.5)}, r"train\.decay_shares: got"),
        ({"decay_shares": (67, 89)}, r"train\.decay_shares: got \(67, 89\)"),
        ({"validations": -1}, r"train\.validations: got -1"),
    ],
)
def test_shares_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


# ---- an epoch --------------------------------------------------------------------------------------------------------


def test_an_epoch_shows_images_as_often_as_they_are_repeated(tmp_path: Path) -> None:
    source = write_data(tmp_path)
    document = json.loads(Path(source.annotations).read_text())
    document["categories"].append({"id": 9, "name": "window"})
    document["annotations"][2]["category_id"] = 9
    Path(source.annotations).write_text(json.dumps(document))
    dataset = training_data(small_run(tmp_path / "run", source)).dataset
    images = len(dataset.images)
    assert images_per_epoch(dataset, 0.0) == images == 7
    rare = images_per_epoch(dataset, 4 / 7)  # one of seven images has it: twice as often
    assert rare == pytest.approx(images + 1)
    plan = BatchPlan([(64, 64)] * images, batch_size=2, seed=0, repeat_factors=dataset_repeat_factors(dataset, 4 / 7))
    steps = schedule_in_steps(TrainConfig(epochs=50, batch_size=2), rare).steps
    assert steps == 200
    assert plan.epoch(steps - 2) == 49
    assert plan.epoch(steps + 1) == 50


# ---- warm-up and decay -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "warmup", "share"), [(500, 1000, "50%"), (10, 10, "90%"), (1, 1, "0%")])
def test_a_run_that_never_leaves_its_warm_up_is_refused(steps: int, warmup: int, share: str) -> None:
    message = rf"train\.warmup_steps: the {warmup:,} steps of warm-up .* {steps} steps.* {share} of .*warmup_share"
    with pytest.raises(ConfigError, match=message):
        require_end_of_warmup(TrainConfig(steps=steps, warmup_steps=warmup))


@pytest.mark.parametrize(("steps", "warmup"), [(1001, 1000), (1, 0), (90_000, 1000)])
def test_a_warm_up_that_ends_is_fine(steps: int, warmup: int) -> None:
    require_end_of_warmup(TrainConfig(steps=steps, warmup_steps=warmup))


def test_a_decay_that_a_short_run_never_sees_is_remarked_on() -> None:
    (remark,) = schedule_remarks(TrainConfig(steps=500))
    assert "never falls: train.decay_steps [60000, 80000] are beyond the end of 500 steps" in remark
    assert "--train.decay_shares" in remark
    assert schedule_remarks(TrainConfig(steps=500, decay_steps=(300, 400))) == ()
    assert schedule_remarks(TrainConfig(steps=500, decay_steps=())) == ()
    assert schedule_remarks(TrainConfig(steps=500, schedule="cosine")) == ()
    assert schedule_remarks(TrainConfig(steps=500, decay_steps=(300, 600))) == (
        "train.decay_steps [600] are beyond the end of 500 steps",
    )
    assert schedule_remarks(TrainConfig()) == ()
