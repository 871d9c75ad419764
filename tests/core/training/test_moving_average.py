import pytest
import torch
from torch import nn

from maskrcnn_core.training.moving_average import MovingAverage


def network(value: float) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def test_average_by_hand() -> None:
    model = network(1.0)
    average = MovingAverage(model, decay=0.5)
    nn.init.constant_(model.get_parameter("0.weight"), 2.0)
    average.update(1)  # decay min(0.5, 2 / 11): 1 + 9 / 11 (2 - 1)
    assert average.state_dict()["0.weight"].tolist() == [pytest.approx([1 + 9 / 11] * 2)]
    average.update(1000)  # decay 0.5
    assert average.state_dict()["0.weight"].tolist() == [pytest.approx([(1 + 9 / 11) / 2 + 1.0] * 2)]
    assert model[0].weight.tolist() == [[2.0, 2.0]]


def test_frozen_weights_and_counters_are_the_networks_own() -> None:
    model = network(1.0)
    model[0].weight.requires_grad_(False)
    average = MovingAverage(model, decay=0.9)
    nn.init.constant_(model.get_parameter("0.weight"), 5.0)
    model[1].num_batches_tracked.fill_(7)
    model[1].running_mean.fill_(1.0)
    average.update(1000)
    state = average.state_dict()
    assert state["0.weight"].tolist() == [[5.0, 5.0]]
    assert int(state["1.num_batches_tracked"]) == 7
    assert state["1.running_mean"].item() == pytest.approx(0.1)
    fresh = network(0.0)
    fresh.load_state_dict(state)


def test_goes_on_bit_by_bit() -> None:
    torch.manual_seed(0)
    straight, resumed = network(1.0), network(1.0)
    one, two = MovingAverage(straight, 0.99), MovingAverage(resumed, 0.99)
    values = torch.randn(6, 1, 2)
    for step, value in enumerate(values, start=1):
        for model, average in ((straight, one), (resumed, two)):
            model[0].weight.data.copy_(value)
            average.update(step)
        if step == 3:
            stored = two.state_dict()
            two = MovingAverage(resumed, 0.99)
            two.load_state_dict(stored)
    assert torch.equal(one.state_dict()["0.weight"], two.state_dict()["0.weight"])
