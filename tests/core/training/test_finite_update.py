import math

import pytest
import torch
from torch import nn

from maskrcnn_core.training.finite_update import update_if_finite

DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


def optimizer_of(weight: nn.Parameter, name: str) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.1, fused=True)
    return torch.optim.AdamW([weight], lr=0.1, fused=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_skipped_step_is_as_if_it_had_never_been(name: str, device: torch.device) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    ends = []
    for gradients in ([math.nan, 1.0, math.inf, 2.0], [1.0, 2.0]):
        weight = nn.Parameter(torch.ones(3, device=device))
        optimizer = optimizer_of(weight, name)
        skipped = []
        for value in gradients:
            weight.grad = torch.full_like(weight, value)
            skipped.append(bool(update_if_finite(optimizer, weight.grad.norm())))
        assert skipped == [not math.isfinite(value) for value in gradients]
        ends.append(weight.detach())
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], torch.ones(3, device=device))
