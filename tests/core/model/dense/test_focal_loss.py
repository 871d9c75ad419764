"""Focal loss against torchvision's operator and a literal reference; divisors by eye."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from maskrcnn_core.model.box_coding import DeltaCoding
from maskrcnn_core.model.dense.focal_loss import FocalLoss, focal_losses
from maskrcnn_core.model.dense.head import DenseHead
from maskrcnn_core.model.loss_counts import divided, own_count
from maskrcnn_core.structures import DenseOutputs, ImageFeatures, Targets
from tests.core.model.dense.test_losses import FixedHead

each_size = pytest.mark.parametrize("fixed_size", [False, True])


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 0.5), (0.25, 1.0)])
def test_is_torchvisions_operator(alpha: float, gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 30, 5, generator=generator)
    labels = torch.randint(5, (2, 30), generator=generator)
    positive = torch.rand(2, 30, generator=generator) < 0.3
    wanted = torch.nn.functional.one_hot(labels, 5).float() * positive[..., None]
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    got = focal_losses(ours, labels, positive, alpha=alpha, gamma=gamma)
    expected = sigmoid_focal_loss(theirs, wanted, alpha=alpha, gamma=gamma).sum(dim=2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    weights = torch.rand(2, 30, generator=generator)
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_by_eye() -> None:
    """p = 1/2 everywhere: each class weighs 1/4 (1/2)^2 ln 2 where it is there, 3/4 of that where it isn't."""
    losses = focal_losses(
        torch.zeros(1, 2, 3), torch.tensor([[2, 0]]), torch.tensor([[True, False]]), alpha=0.25, gamma=2.0
    )
    unit = 0.25 * torch.tensor(2.0).log()
    torch.testing.assert_close(losses, unit * torch.tensor([[0.25 + 2 * 0.75, 3 * 0.75]]))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_is_finite_however_sure(gamma: float) -> None:
    logits = torch.tensor([[[-1e4, 1e4, 0.0, -300.0, 300.0]]] * 2).view(1, 2, 5).requires_grad_()
    losses = focal_losses(logits, torch.tensor([[0, 1]]), torch.tensor([[True, True]]), alpha=0.25, gamma=gamma)
    losses.sum().backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(losses).all())
    assert bool(torch.isfinite(logits.grad).all())


# ---- the loss of a head ----------------------------------------------------------------------------------------------

ANCHORS = [
    torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 7], [40, 40, 50, 50]]),
    torch.tensor([[0.0, 0, 60, 60]]),
]
KEPT = {"positive_overlap": 0.8, "negative_overlap": 0.4, "crowd_overlap": 0.5, "alpha": 0.25, "gamma": 2.0}


def focal(divisor: str, box_loss: str = "smooth_l1") -> FocalLoss:
    return FocalLoss(**KEPT, divisor=divisor, smooth_l1_beta=0.0, box_loss=box_loss)


def features(*, fixed_size: bool) -> ImageFeatures:
    maps = [torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 1, 1)]
    return ImageFeatures(maps, (32, 64), torch.tensor([[64, 64]] * 2), torch.zeros(2, 3, 64, 64), fixed_size=fixed_size)


def objects() -> Targets:
    """Two objects in the first image, of which the second is a class 2; a crowd in the other."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 31]], [[39, 39, 51, 51], [0, 0, 1, 1]]])
    valid = torch.tensor([[True, True], [False, False]])
    return Targets(boxes, torch.tensor([[1, 2], [0, 0]]), valid, torch.tensor([[False, False], [True, False]]))


def head_with(logit: float, num_classes: int = 3) -> DenseHead:
    outputs = DenseOutputs(
        [torch.full((2, len(level), num_classes), logit) for level in ANCHORS],
        [torch.ones(2, len(level), 4) for level in ANCHORS],
    )
    return FixedHead(outputs)


def losses(loss: FocalLoss, *, fixed_size: bool, num_classes: int = 3) -> dict[str, Tensor]:
    head, targets = head_with(0.0, num_classes), objects()
    return divided(loss(head, features(fixed_size=fixed_size), ANCHORS, DeltaCoding(), targets), own_count)


@each_size
def test_what_counts_and_what_it_is_divided_by(fixed_size: bool) -> None:
    """Image 0: anchors 0 and 1 positive, 2 ignored (IoU .7), 3 and 4 negative. Image 1: anchor 3 lies in a crowd, four
    negatives. With p = 1/2 a positive costs 1.75, a negative 2.25 units."""
    unit = float(0.25 * torch.tensor(2.0).log())
    image_0, image_1 = 2 * 1.75 + 2 * 2.25, 4 * 2.25
    got = losses(focal("image"), fixed_size=fixed_size)
    assert float(got["dense_class"]) == pytest.approx(unit * (image_0 / 2 + image_1 / 1) / 2)
    # |1 - 0| four times; of the second the object is .05 of its height lower, and log(1.1) higher.
    box = 4 + 3 - 0.05 + (1 - float(torch.tensor(1.1).log()))
    assert float(got["dense_box"]) == pytest.approx(box / 2 / 2, rel=1e-5)
    got = losses(focal("batch"), fixed_size=fixed_size)
    assert float(got["dense_class"]) == pytest.approx(unit * (image_0 + image_1) / 2)
    assert float(got["dense_box"]) == pytest.approx(box / 2, rel=1e-5)


@each_size
def test_a_moving_average_of_positives(fixed_size: bool) -> None:
    loss = focal("average")
    assert loss.state_dict()["averages"].tolist() == [100.0, 100.0]
    unit = float(0.25 * torch.tensor(2.0).log()) * (2 * 1.75 + 6 * 2.25)
    for average in (90.2, 81.38):  # .9 * 100 + .1 * 2, ...
        got = losses(loss.train(), fixed_size=fixed_size)
        assert float(got["dense_class"]) == pytest.approx(unit / average, rel=1e-5)
        assert loss.averages.tolist() == pytest.approx([average] * 2)
    got = losses(loss.eval(), fixed_size=fixed_size)  # which is no step
    assert float(got["dense_class"]) == pytest.approx(unit / 81.38, rel=1e-5)


@each_size
def test_without_objects(fixed_size: bool) -> None:
    nothing = replace(objects(), valid=torch.zeros(2, 2, dtype=torch.bool), crowd=torch.zeros(2, 2, dtype=torch.bool))
    for divisor in ("image", "batch", "average"):
        sums = focal(divisor, "giou")(head_with(0.0), features(fixed_size=fixed_size), ANCHORS, DeltaCoding(), nothing)
        got = divided(sums, own_count)
        assert float(got["dense_box"]) == 0
        assert 0 < float(got["dense_class"]) < 10


@each_size
def test_one_class_takes_objects_of_all(fixed_size: bool) -> None:
    unit = float(0.25 * torch.tensor(2.0).log())
    got = losses(focal("batch"), fixed_size=fixed_size, num_classes=1)
    assert float(got["dense_class"]) == pytest.approx(unit * (2 * 0.25 + 6 * 0.75) / 2)
