"""Box losses by eye, against loops over pairs, and against torchvision."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

from maskrcnn_core.boxes import decode_deltas, encode_deltas
from maskrcnn_core.errors import ConfigError
from maskrcnn_core.model.box_coding import DeltaCoding
from maskrcnn_core.model.losses import box_regression_loss, ciou_losses, giou_losses, smooth_l1_sum

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
CODING = DeltaCoding(WEIGHTS)
KINDS = ["smooth_l1", "giou", "ciou"]


def random_boxes(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 50
    sides = 5 + torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 40
    return torch.cat((corners, corners + sides), dim=-1)


def test_smooth_l1_by_eye() -> None:
    # beta 2: 1 -> 1 / 4 (square part); 4 -> 4 - 1 (linear part). beta 0: |difference|.
    predicted = torch.tensor([[1.0, 4, 0, -4], [9, 9, 9, 9]], requires_grad=True)
    wanted = torch.tensor([[0.0, 0, 0, 0], [float("nan")] * 4])
    counted = torch.tensor([True, False])
    assert smooth_l1_sum(predicted, wanted, counted, 2.0).item() == pytest.approx(0.25 + 3 + 3)
    assert smooth_l1_sum(predicted, wanted, counted, 0.0).item() == pytest.approx(9.0)
    smooth_l1_sum(predicted, wanted, counted, 2.0).backward()
    torch.testing.assert_close(predicted.grad, torch.tensor([[0.5, 1, 0, -1], [0, 0, 0, 0]]))
    assert smooth_l1_sum(predicted[:0], wanted[:0], counted[:0], 1.0).item() == 0


def test_giou_and_ciou_by_eye() -> None:
    # Of 2 x 2 boxes: the same; one beside the other with a gap of 2 (a hull of 6 x 2, 4 of it empty); half as wide.
    predicted = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 2]])
    wanted = torch.tensor([[0.0, 0, 2, 2], [4, 0, 6, 2], [0, 0, 2, 2]])
    torch.testing.assert_close(giou_losses(predicted, wanted), torch.tensor([0, 1 + 4 / 12, 0.5]))
    aspect = 4 / math.pi**2 * (math.atan(1) - math.atan(0.5)) ** 2
    narrow = 0.5 + 0.5**2 / 8 + aspect**2 / (0.5 + aspect)
    torch.testing.assert_close(ciou_losses(predicted, wanted), torch.tensor([0, 1 + 16 / 40, narrow]))


def slow_giou(first: list[float], second: list[float]) -> float:
    ax1, ay1, ax2, ay2 = first
    bx1, by1, bx2, by2 = second
    intersection = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    return 1 - (intersection / union - (hull - union) / hull)


def slow_ciou(first: list[float], second: list[float]) -> float:
    ax1, ay1, ax2, ay2 = first
    bx1, by1, bx2, by2 = second
    intersection = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    iou = intersection / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection)
    distance = math.hypot((ax1 + ax2 - bx1 - bx2) / 2, (ay1 + ay2 - by1 - by2) / 2)
    diagonal = math.hypot(max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1))
    aspect = 4 / math.pi**2 * (math.atan((bx2 - bx1) / (by2 - by1)) - math.atan((ax2 - ax1) / (ay2 - ay1))) ** 2
    return 1 - iou + distance**2 / diagonal**2 + aspect**2 / (1 - iou + aspect)


@pytest.mark.parametrize(
    ("ours", "slow", "peer"),
    [(giou_losses, slow_giou, generalized_box_iou_loss), (ciou_losses, slow_ciou, complete_box_iou_loss)],
)
def test_box_losses_are_the_slow_reference_and_torchvisions(
    ours: Callable[[Tensor, Tensor], Tensor],
    slow: Callable[[list[float], list[float]], float],
    peer: Callable[[Tensor, Tensor], Tensor],
) -> None:
    predicted, wanted = random_boxes(3, 20, seed=0).requires_grad_(), random_boxes(3, 20, seed=1)
    got = ours(predicted, wanted)
    pairs = zip(predicted.reshape(-1, 4).tolist(), wanted.reshape(-1, 4).tolist(), strict=True)
    expected = torch.tensor([slow(*pair) for pair in pairs], dtype=torch.float64).view(3, 20)
    torch.testing.assert_close(got, expected, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(got, peer(predicted, wanted), atol=1e-7, rtol=1e-7)
    (ours_gradient,) = torch.autograd.grad(got.sum(), predicted)
    (peer_gradient,) = torch.autograd.grad(peer(predicted, wanted).sum(), predicted)
    torch.testing.assert_close(ours_gradient, peer_gradient, atol=1e-7, rtol=1e-7)
    assert ours_gradient.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [0.0, float("inf"), float("nan")])
def test_regression_loss_sums_the_counted_boxes_only(kind: str, garbage: float) -> None:
    references, wanted = random_boxes(2, 6, seed=2), random_boxes(2, 6, seed=3)
    deltas = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    counted = torch.tensor([[True, False, True, True, False, False], [False, True, False, False, False, True]])
    if kind == "smooth_l1":
        difference = (deltas - encode_deltas(wanted, references, WEIGHTS))[counted].abs()
        each = torch.where(difference < 0.5, difference.square(), difference - 0.25)
    else:
        peer = generalized_box_iou_loss if kind == "giou" else complete_box_iou_loss
        each = peer(decode_deltas(deltas, references, WEIGHTS)[counted], wanted[counted])
    references[~counted], wanted[~counted] = garbage, garbage
    deltas.requires_grad_()
    loss = box_regression_loss(deltas, references, wanted, counted, coding=CODING, loss_type=kind, beta=0.5)
    torch.testing.assert_close(loss, each.sum(), atol=1e-6, rtol=1e-6)
    loss.backward()
    assert deltas.grad.isfinite().all()
    assert torch.equal(deltas.grad.abs().sum(dim=-1) > 0, counted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
def test_nothing_counted_is_zero_and_has_a_gradient(kind: str, shape: tuple[int, int]) -> None:
    deltas = torch.zeros(*shape, 4, requires_grad=True)
    boxes, counted = torch.zeros(*shape, 4), torch.zeros(shape, dtype=torch.bool)
    loss = box_regression_loss(deltas, boxes, boxes, counted, coding=CODING, loss_type=kind, beta=1.0)
    assert loss.item() == 0
    loss.backward()
    assert not deltas.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_box_costs_nothing_and_descent_finds_it(kind: str) -> None:
    references, wanted = random_boxes(8, seed=5), random_boxes(8, seed=6)
    counted = torch.ones(8, dtype=torch.bool)

    def loss(deltas: Tensor) -> Tensor:
        return box_regression_loss(deltas, references, wanted, counted, coding=CODING, loss_type=kind, beta=1.0)

    right = encode_deltas(wanted, references, WEIGHTS)
    assert loss(right).item() == pytest.approx(0, abs=1e-6)
    deltas = torch.zeros(8, 4, dtype=torch.float64, requires_grad=True)
    before = loss(deltas).item()
    optimizer = torch.optim.Adam([deltas], lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        loss(deltas).backward()
        optimizer.step()
    assert loss(deltas).item() < 0.1 * before


def test_unknown_kind_is_refused() -> None:
    box = torch.zeros(1, 4)
    with pytest.raises(ConfigError, match="box_loss: got 'diou', expected 'smooth_l1', 'giou' or 'ciou'"):
        box_regression_loss(box, box, box, torch.ones(1).bool(), coding=CODING, loss_type="diou", beta=0.0)
