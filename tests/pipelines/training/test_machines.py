"""What a training run asks of a cluster: without Ray."""

from dataclasses import replace
from typing import Any

import pytest
from ray.train import ScalingConfig

from maskrcnn_core.errors import ConfigError
from pipelines.cluster.capacity import Capacity
from pipelines.training.config import TrainConfig, TrainRun
from pipelines.training.data_config import DataConfig, DatasetConfig
from pipelines.training.machines import on_chosen_devices, training_demand, worker_resources

CPUS, GPUS = Capacity(({"CPU": 8.0},)), Capacity(({"CPU": 64.0, "GPU": 8.0},))


def run_of(**settings: Any) -> TrainRun:
    return TrainRun(output="run", train=TrainConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "capacity", "expected", "notes"),
    [
        ({}, CPUS, False, ["computing on CPUs: the Ray cluster has no GPU (train.use_gpu auto)"]),
        ({"num_workers": 8}, GPUS, True, ["computing on GPUs: the Ray cluster has 8 (train.use_gpu auto)"]),
        (
            {"num_workers": 2},
            GPUS,
            True,
            [
                "computing on GPUs: the Ray cluster has 8 (train.use_gpu auto)",
                "6 GPUs lie idle of 8: train.num_workers is 2",
            ],
        ),
        ({"use_gpu": True}, CPUS, True, []),
        ({"use_gpu": False}, GPUS, False, ["8 GPUs lie idle: train.use_gpu is false"]),
        ({"use_gpu": False}, CPUS, False, []),
    ],
)
def test_devices_are_chosen_once_and_said(
    settings: dict[str, Any], capacity: Capacity, expected: bool, notes: list[str]
) -> None:
    told: list[str] = []
    chosen = on_chosen_devices(run_of(**settings), capacity, told.append)
    assert chosen.train.use_gpu is expected
    assert told == notes


def test_validation_tasks_keep_gpus_busy_too() -> None:
    run = run_of(num_workers=6, validate_in="task", validation_tasks=2)
    run = replace(run, data=DataConfig(val=DatasetConfig(annotations="val.json")))
    told: list[str] = []
    on_chosen_devices(run, GPUS, told.append)
    assert len(told) == 1  # what was chosen, and nothing idle
    demand = training_demand(replace(run, train=replace(run.train, use_gpu=True)), cpus=9, readers=0)
    assert demand.bundles == ({"CPU": 9.0, "GPU": 1.0},) * 6 + ({"CPU": 1.0, "GPU": 1.0},) * 2
    assert demand.what == "6 workers and 2 validation tasks"
    assert demand.mend == (
        "lower train.num_workers, add machines, set train.validate_in to workers, or set train.use_gpu false"
    )


def test_a_run_begins_with_the_fewest_workers_it_goes_on_with() -> None:
    demand = training_demand(run_of(num_workers=8, min_workers=2, use_gpu=False), cpus=1, readers=3)
    assert demand.bundles == ({"CPU": 1.0},) * (2 + 2 * 3)
    assert (demand.setting, demand.what) == ("train.min_workers", "2 workers with 3 readers each (data.workers)")
    assert "lower data.workers or set data.reader to local" in demand.mend


def test_a_kind_of_gpu_is_asked_for_by_workers() -> None:
    run = run_of(use_gpu=True, accelerator_type="H100")
    (bundle,) = training_demand(run, cpus=4, readers=0).bundles
    assert bundle == {"CPU": 4.0, "GPU": 1.0, "accelerator_type:H100": 0.001}
    own = worker_resources(run.train, 4)
    asked = ScalingConfig(num_workers=1, use_gpu=True, resources_per_worker=own, accelerator_type="H100")
    assert asked._resources_per_worker_not_none == bundle  # what Ray Train itself will ask for
    with pytest.raises(ConfigError, match=r"accelerator_type: got 'H100', expected none where train.use_gpu is false"):
        run_of(use_gpu=False, accelerator_type="H100")


@pytest.mark.parametrize(
    "settings",
    [
        {"use_gpu": "perhaps"},
        {"use_gpu": 1},
        {"wait_minutes": -1.0},
        {"timeout_minutes": 0.0},
        {"checkpoint_minutes": float("nan")},
    ],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        run_of(**settings)
