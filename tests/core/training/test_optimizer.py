from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_core.training.optimizer import build_optimizer, learning_rate, parameter_groups, set_learning_rate
from pipelines.training.config import TrainConfig


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def test_only_weights_decay_and_frozen_parameters_stay_out() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    decayed, kept = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert [id(p) for p in decayed["params"]] == [id(model[3].weight)]
    assert kept["weight_decay"] == 0.0
    assert [id(p) for p in kept["params"]] == [
        id(p) for p in (model[0].bias, model[1].weight, model[1].bias, model[3].bias)
    ]


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(network().requires_grad_(False), learning_rate=0.1, momentum=0.9, weight_decay=0.0)


def test_update_by_hand() -> None:
    # v1 = g + d w = 1 + 0.5 * 2 = 2, w1 = 2 - 0.1 * 2 = 1.8;
    # v2 = 0.9 * 2 + 1 + 0.5 * 1.8 = 3.7, w2 = 1.8 - 0.37 = 1.43.
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    optimizer = build_optimizer(model, learning_rate=9.0, momentum=0.9, weight_decay=0.5)
    set_learning_rate(optimizer, 0.1)
    for expected in (1.8, 1.43):
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()
        assert model.weight.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.1), (5, 0.55), (10, 1.0), (59, 1.0), (60, 0.1), (79, 0.1), (80, 0.01), (99, 0.01)],
)
def test_step_schedule(step: int, expected: float) -> None:
    rate = learning_rate(
        step, peak=1.0, steps=100, warmup_steps=10, warmup_factor=0.1, schedule="step", decay_steps=(60, 80)
    )
    assert rate == pytest.approx(expected)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (5, 0.5), (10, 1.0), (55, 0.5), (100, 0.0)])
def test_cosine_schedule(step: int, expected: float) -> None:
    rate = learning_rate(step, peak=1.0, steps=100, warmup_steps=10, warmup_factor=0.0, schedule="cosine")
    assert rate == pytest.approx(expected)


def test_warm_up_longer_than_the_run_and_none_at_all() -> None:
    fixed: dict[str, Any] = {"peak": 1.0, "warmup_factor": 0.0, "schedule": "cosine"}
    assert learning_rate(5, steps=10, warmup_steps=20, **fixed) == pytest.approx(0.25)
    assert learning_rate(0, steps=10, warmup_steps=0, **fixed) == 1.0


def test_weight_decay_by_kind() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    groups = parameter_groups(model, 0.1, bias_decay=0.2, norm_decay=0.3)
    found = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for module, weight, bias in ((0, 0.1, 0.2), (1, 0.3, 0.3), (2, 0.3, 0.3), (3, 0.1, 0.2)):
        assert found[id(model[module].weight)] == weight
        assert found[id(model[module].bias)] == bias
    assert len(parameter_groups(model, 0.1, bias_decay=0.1)) == 2


def test_adamw_update_by_hand() -> None:
    # First step: m / (1 - b1) = g and v / (1 - b2) = g^2, so w = w (1 - rate decay) - rate g / |g|.
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    optimizer = build_optimizer(model, learning_rate=0.1, momentum=0.9, weight_decay=0.5, algorithm="adamw")
    model.weight.grad = torch.full((1, 1), -3.0)
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.0 * 0.95 + 0.1, abs=1e-6)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_the_rate_follows_the_batch() -> None:
    settings = TrainConfig(learning_rate=0.02, batch_size=4, reference_batch_size=16)
    assert settings.peak_learning_rate == pytest.approx(0.005)
    assert TrainConfig(learning_rate=0.02, batch_size=4).peak_learning_rate == 0.02
