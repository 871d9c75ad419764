"""What losses are divided by: once for all of them, by one process's counts or by the mean of all processes'."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from maskrcnn_core.model.loss_counts import LossSum, divided, mean_count, own_count


def loss(total: float, count: int, weight: float = 1.0) -> LossSum:
    return LossSum(torch.tensor(total), torch.tensor(count), weight)


def test_every_loss_by_its_own_count_and_weight() -> None:
    sums = {"rpn_box": loss(6.0, 4), "roi_mask": loss(0.0, 0), "roi_keypoint": loss(6.0, 3, weight=0.5)}
    losses = divided(sums, own_count)
    assert list(losses) == list(sums)
    assert {name: value.item() for name, value in losses.items()} == {
        "rpn_box": 1.5,
        "roi_mask": 0.0,  # nothing / at least 1
        "roi_keypoint": 1.0,  # 6 / 3 / 2
    }


@pytest.mark.parametrize(("elsewhere", "expected"), [([4, 0, 1], [4.0, 0.5, 2.0]), ([0, 0, 0], [2.0, 0.5, 1.5])])
def test_processes_exchange_one_vector(
    elsewhere: list[int], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanged: list[list[float]] = []

    def all_reduce(total: Tensor) -> None:
        exchanged.append(total.tolist())
        total += torch.tensor(elsewhere)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    sums = {"rpn_box": loss(6.0, 4), "roi_mask": loss(0.0, 0), "roi_keypoint": loss(6.0, 3)}
    losses = divided(sums, mean_count)
    assert exchanged == [[4.0, 0.0, 3.0]]
    # (4 + 4) / 2, at least 1 / 2, (3 + 1) / 2; and so on.
    assert [float(value) for value in losses.values()] == [6.0 / expected[0], 0.0, 6.0 / expected[2]]
    assert mean_count(torch.tensor([4, 0, 3])).tolist() == expected
