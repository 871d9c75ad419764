from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_core.model.loss_counts import Normalizer
from maskrcnn_core.structures import ImageBatch, Proposals, Targets
from maskrcnn_core.training.step import StepResult, seed_step, training_step


class Pull(nn.Module):
    """Two losses: the mean of weight * pixels, and a random share of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0]]))
        self.seen_dtype: torch.dtype | None = None

    def forward(self, images: ImageBatch, targets: Targets, *, count: Normalizer) -> dict[str, Tensor]:
        product = images.pixels.flatten()[:, None] @ self.weight
        self.seen_dtype = product.dtype
        return {"mean": product.mean(), "share": product.mean() * torch.rand(())}


def inputs(value: float) -> tuple[ImageBatch, Targets]:
    sizes = torch.tensor([[2, 2]])
    images = ImageBatch(torch.full((1, 3, 2, 2), value), sizes, sizes)
    empty = torch.zeros(1, 0)
    return images, Targets(torch.zeros(1, 0, 4), empty.long(), empty.bool(), empty.bool())


def step(model: Pull, value: float = 2.0, **options: Any) -> StepResult:
    optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
    return training_step(model, *inputs(value), optimizer, learning_rate=0.1, **options)


def test_descends_the_sum_of_the_losses() -> None:
    model = Pull()
    seed_step(0, 0, 0)
    share = torch.rand(()).item()
    seed_step(0, 0, 0)
    result = step(model, with_grad_norm=True)
    assert result.names == ("mean", "share")
    assert result.losses.tolist() == pytest.approx([2.0, 2.0 * share])
    assert result.grad_norm is not None
    assert result.grad_norm.item() == pytest.approx(2.0 + 2.0 * share)
    assert model.weight.item() == pytest.approx(1.0 - 0.1 * (2.0 + 2.0 * share))
    assert not result.losses.requires_grad


def test_clipping_shortens_a_long_gradient_and_leaves_a_short_one() -> None:
    for limit, moved in ((0.5, 0.05), (100.0, None)):
        model, free = Pull(), Pull()
        for network, options in ((model, {"clip_norm": limit}), (free, {})):
            seed_step(0, 0, 0)
            result = step(network, **options)
            assert (result.grad_norm is None) == (network is free)
        expected = 1.0 - moved if moved else free.weight.item()
        assert model.weight.item() == pytest.approx(expected, rel=1e-5)


def test_bfloat16_runs_the_forward_pass_only() -> None:
    model = Pull()
    result = step(model, bfloat16=True)
    assert model.seen_dtype == torch.bfloat16
    assert result.losses.dtype == torch.float32
    assert model.weight.dtype == torch.float32


def test_seeds_differ_by_step_rank_and_run() -> None:
    def draw(*key: int) -> float:
        seed_step(*key)
        return torch.rand(()).item()

    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    assert [draw(*key) for key in keys] == [draw(*key) for key in keys]
    assert len({draw(*key) for key in keys}) == 4


def test_proposals_reach_the_detector() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(
            self, images: ImageBatch, targets: Targets, proposals: Proposals, *, count: Normalizer
        ) -> dict[str, Tensor]:
            return {"count": self.weight * proposals.count.sum()}

    model = Counts()
    given = Proposals(torch.zeros(1, 3, 4), torch.zeros(1, 3), torch.tensor([3]))
    result = training_step(
        model, *inputs(1.0), torch.optim.SGD(model.parameters(), lr=1.0), learning_rate=0.1, proposals=given
    )
    assert result.losses.tolist() == [3.0]
    assert model.weight.item() == pytest.approx(1.0 - 0.3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_count_reaches_the_detector(accumulate: int) -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images: ImageBatch, targets: Targets, *, count: Normalizer) -> dict[str, Tensor]:
            return {"mean": self.weight * images.pixels.sum() / count(torch.tensor(images.pixels.numel()))}

    model, (images, targets) = Sums(), inputs(4.0)
    result = training_step(
        model,
        images,
        targets,
        torch.optim.SGD(model.parameters(), lr=1.0),
        learning_rate=0.5,
        accumulate=accumulate,
        count=lambda number: number * 2.0,
    )
    assert result.losses.tolist() == [2.0]
    assert model.weight.item() == pytest.approx(1.0 - 0.5 * 2.0)
